"""Pictures and what models get of them: image sets, labels, preprocessing, overlays."""

from svit_deploy.images.sets import (
    PICTURE_SUFFIXES,
    ImageSet,
    images_of,
    join_images,
    load_images,
    read_picture,
    synthetic_images,
)

__all__ = [
    "PICTURE_SUFFIXES",
    "ImageSet",
    "images_of",
    "join_images",
    "load_images",
    "read_picture",
    "synthetic_images",
]
