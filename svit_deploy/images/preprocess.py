"""From an RGB picture to a graph's input, step by step as torchvision's evaluation does it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from svit_deploy.model.config import Preprocess


def resized_size(
    size: tuple[int, int], image_size: tuple[int, int], crop_ratio: float
) -> tuple[int, int]:
    """The size (height, width) that a picture of `size` is resized to before the centre crop.

    For a square `image_size` the shorter side becomes `int(image_size / crop_ratio)`, as DeiT's
    and timm's evaluation do (224 / 0.875 = 256), and the longer side keeps the aspect ratio,
    rounded down like torchvision's `Resize`. Otherwise the picture is scaled by the smallest
    factor at which both sides reach `int(side / crop_ratio)`, so that the crop always fits.
    """
    height, width = size
    target_height, target_width = (int(side / crop_ratio) for side in image_size)
    if height * target_width <= width * target_height:
        return target_height, width * target_height // height
    return height * target_width // width, target_width


def resize_and_crop(
    picture: np.ndarray, preprocess: Preprocess, image_size: tuple[int, int]
) -> np.ndarray:
    """Resizes a picture and crops its centre: uint8 `[h, w, 3]` to uint8 `[H, W, 3]`.

    Pillow's resampling (antialiased) and torchvision's `CenterCrop` rounding. A picture that
    already has the size to be resized to is only cropped.
    """
    height, width = image_size
    resized = resized_size(picture.shape[:2], image_size, preprocess.crop_ratio)
    if resized != picture.shape[:2]:
        resample = Image.Resampling[preprocess.interpolation.upper()]
        image = Image.fromarray(picture).resize((resized[1], resized[0]), resample)
        picture = np.asarray(image)
    top = round((resized[0] - height) / 2)
    left = round((resized[1] - width) / 2)
    return picture[top : top + height, left : left + width]


def normalise(picture: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """`(x / 255 - mean) / std` per channel: uint8 `[H, W, 3]` to float32 `[3, H, W]`."""
    mean, std = _statistics(preprocess)
    values = picture.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    return (values - mean) / std


def denormalise(image: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Undoes `normalise`, rounded and clipped: float32 `[3, H, W]` to uint8 `[H, W, 3]`."""
    mean, std = _statistics(preprocess)
    values = (image * std + mean) * np.float32(255)
    return np.rint(values).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


def _statistics(preprocess: Preprocess) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, each float32 `[3, 1, 1]`."""
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (preprocess.mean, preprocess.std))
    return mean, std
