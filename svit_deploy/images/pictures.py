"""One picture as an array: decoding a file, and what shape no picture has."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from svit_deploy.errors import InputError
from svit_deploy.io.npz import reason

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
# What a file holds decides, not its name: without this list Pillow would also try formats that
# run other programs, such as EPS.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
_MAX_ASPECT_RATIO = 100


def read_picture(path: Path | str) -> np.ndarray:
    """Decodes a file; see `decode_picture`."""
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe that nobody writes to never ends
        raise InputError(f"picture {path} cannot be read (it is no file)", "replace or remove it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return decode_picture(path, str(path))


def decode_picture(
    file: Path | BinaryIO,
    name: str,
    *,
    formats: tuple[str, ...] = _FORMATS,
    max_pixels: int | None = None,
) -> np.ndarray:
    """Decodes a picture upright (EXIF) as RGB, uint8 `[H, W, 3]`.

    Transparency is dropped, as training loaders do; 16-bit grey keeps its upper 8 bits; of
    several frames the first is taken.

    Args:
        name: what sentences call it.
        formats: those that may be decoded, by Pillow's names.
        max_pixels: by default Pillow's limit against decompression bombs.

    Raises:
        InputError: damaged, not one of the formats, float pixels, or too many pixels: the size
            is read before any of them is decoded.
    """
    most = min(max_pixels or sys.maxsize, Image.MAX_IMAGE_PIXELS or sys.maxsize)
    try:
        with Image.open(file, formats=formats) as image:
            if image.width * image.height <= most:
                return _to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:  # Pillow refuses twice its limit by itself
        pass
    except Exception as error:  # Pillow's decoders fail in many ways on a damaged file
        unknown = isinstance(error, UnidentifiedImageError)
        why = f"not a {', '.join(formats)} file" if unknown else reason(error)
        raise InputError(
            f"picture {name} cannot be read ({why})", "replace or remove it"
        ) from error
    raise InputError(f"picture {name} has more than {most} pixels", "scale it down or remove it")


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
