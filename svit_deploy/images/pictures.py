"""One picture as an array: decoding a file, and what shape no picture has."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from svit_deploy.errors import InputError
from svit_deploy.io.npz import reason

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
# What a file holds decides, not its name: without this list Pillow would also try formats that
# run other programs, such as EPS.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
_MAX_ASPECT_RATIO = 100


def read_picture(path: Path) -> np.ndarray:
    """Decodes a picture upright (EXIF) as RGB, uint8 `[H, W, 3]`.

    Transparency is dropped, as training loaders do; 16-bit grey keeps its upper 8 bits; of
    several frames the first is taken.

    Raises:
        InputError: damaged, not one of the known formats, float pixels, or more pixels than
            Pillow's limit against decompression bombs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if path.exists() and not path.is_file():  # a pipe that nobody writes to never ends
                raise ValueError("it is no file")
            with Image.open(path, formats=_FORMATS) as image:
                return _to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(
            f"picture {path} has more than {Image.MAX_IMAGE_PIXELS} pixels",
            "scale it down or remove it",
        ) from error
    except Exception as error:  # Pillow's decoders fail in many ways on a damaged file
        unknown = isinstance(error, UnidentifiedImageError)
        why = f"not a {', '.join(_FORMATS)} file" if unknown else reason(error)
        raise InputError(
            f"picture {path} cannot be read ({why})", "replace or remove it"
        ) from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise ValueError("float pixels have no known range")
    if image.mode.startswith("I"):  # convert() would clip 16-bit values at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("32-bit pixels have no known range")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return np.array(image.convert("RGB"))


def check_picture(array: np.ndarray, name: str) -> np.ndarray:
    """The array, a picture uint8 `[h, w, 3]` or a preprocessed image float32 `[3, H, W]`.

    Raises:
        InputError: too long and thin.
    """
    height, width = array.shape[:2] if array.dtype == np.uint8 else array.shape[1:]
    # Resizing the shorter side up would take gigabytes for a picture of 1 x 100000.
    if max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
        raise InputError(
            f"picture {name} is {height}x{width}, too long and thin", "crop or remove it"
        )
    return array
