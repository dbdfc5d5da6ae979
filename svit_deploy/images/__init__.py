"""Pictures and what models get of them: image sets, labels, preprocessing, overlays."""

from svit_deploy.images.pictures import PICTURE_SUFFIXES, read_picture
from svit_deploy.images.sets import (
    ImageSet,
    check_images,
    images_of,
    join_images,
    load_images,
    read_through,
    source_of,
    synthetic_images,
)
from svit_deploy.images.source import Images, ImageSource, open_images

__all__ = [
    "PICTURE_SUFFIXES",
    "ImageSet",
    "ImageSource",
    "Images",
    "check_images",
    "images_of",
    "join_images",
    "load_images",
    "open_images",
    "read_picture",
    "read_through",
    "source_of",
    "synthetic_images",
]
