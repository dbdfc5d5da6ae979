"""From an RGB picture to a detector's input: the official test pipeline, step by step.

Keep-ratio bilinear resize to at most 800 (short side) x 1333 (long side), mean and standard
deviation, zeros at the bottom and the right up to a multiple of 32.
"""

from __future__ import annotations

import numpy as np

from svit_deploy.images.prepared import Prepared
from svit_deploy.images.preprocess import normalise
from svit_deploy.model.config import Preprocess
from svit_deploy.model.sizes import SizeRange


def pad_picture(
    picture: np.ndarray, resize: tuple[int, int], preprocess: Preprocess, sizes: SizeRange
) -> Prepared:
    """Prepares an RGB picture, uint8 `[h, w, 3]`.

    A graph that was exported for less than the pipeline asks for gets the picture scaled down
    until it fits; one of a fixed size gets it padded to that size.

    Args:
        resize: short and long side, in pixels, that pictures are scaled to fit.

    Raises:
        InputError: so long and thin that a side is below the smallest legal size.
    """
    height, width = picture.shape[:2]
    short, long = resize
    scale = min(long / max(height, width), short / min(height, width))
    scale = min(scale, sizes.max[0] / height, sizes.max[1] / width)
    new = tuple(
        min(max(int(side * scale + 0.5), 1), limit)
        for side, limit in zip((height, width), sizes.max, strict=True)
    )
    resized = resize_bilinear(picture, (new[0], new[1]))
    step = sizes.step
    padded = sizes.opt if sizes.fixed else tuple(-(-side // step) * step for side in new)
    pixels = np.zeros((3, *padded), np.float32)
    pixels[:, : new[0], : new[1]] = normalise(resized, preprocess)
    sizes.check((padded[0], padded[1]))
    factors = (new[1] / width, new[0] / height)
    return Prepared(pixels, (new[0], new[1]), (*factors, *factors), (height, width))


def resize_bilinear(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 `[h, w, 3]` to `size` as OpenCV's INTER_LINEAR does, to one grey level.

    No antialiasing; weights in 11 bits and intermediate values rounded as in OpenCV's
    fixed-point code.
    """
    if picture.shape[:2] == size:
        return picture
    low, high, low_share, high_share = _taps(picture.shape[1], size[1])
    shares = low_share[:, None], high_share[:, None]
    lines = picture[:, low] * shares[0] + picture[:, high] * shares[1]  # scaled by 2^11
    lines >>= 4
    low, high, low_share, high_share = (
        taps[:, None, None] for taps in _taps(picture.shape[0], size[0])
    )
    top = (lines[low[:, 0, 0]] * low_share) >> 16
    bottom = (lines[high[:, 0, 0]] * high_share) >> 16
    return ((top + bottom + 2) >> 2).astype(np.uint8)


def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each new position the two old ones it lies between, and their weights out of 2048."""
    place = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    low = np.floor(place).astype(np.int64)
    share = place - low.astype(np.float32)
    share[(low < 0) | (low >= old - 1)] = 0
    low = low.clip(0, old - 1)
    scaled = [np.rint(value * np.float32(2048)).astype(np.int32) for value in (1 - share, share)]
    return low, np.minimum(low + 1, old - 1), scaled[0], scaled[1]
