"""Pictures and what models get of them: image sets, labels, preprocessing, overlays."""

from svit_deploy.images.sets import (
    PICTURE_SUFFIXES,
    ImageSet,
    check_images,
    images_of,
    load_images,
    read_picture,
    synthetic_images,
)

__all__ = [
    "PICTURE_SUFFIXES",
    "ImageSet",
    "check_images",
    "images_of",
    "load_images",
    "read_picture",
    "synthetic_images",
]
