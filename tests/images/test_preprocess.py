"""Preprocessing against a plain NumPy computation, and its size arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svit_deploy.images.preprocess import denormalise, normalise, resize_and_crop, resized_size
from svit_deploy.model.config import Preprocess

SIDES = st.integers(1, 600)
CROP_RATIOS = st.sampled_from([0.875, 0.9, 0.95, 1.0])


def random_picture(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * 1000 + width)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def cubic_weights(old: int, new: int) -> np.ndarray:
    """Antialiased bicubic resampling (a = -0.5) as a matrix `[new, old]`."""
    scale = old / new
    stretch = max(scale, 1.0)
    centres = (np.arange(new)[:, None] + 0.5) * scale
    d = np.abs(np.arange(old)[None, :] + 0.5 - centres) / stretch
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    weights = np.where(d < 1, near, np.where(d < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size", [(80, 100), (100, 60), (20, 31), (32, 32)])
def test_bicubic_resize_and_crop_equal_a_plain_computation(size: tuple[int, int]) -> None:
    picture = random_picture(*size)
    short = min(size)
    resized = [int(36 * side / short) for side in size]  # int(32 / 0.875) = 36
    rows, columns = (cubic_weights(old, new) for old, new in zip(size, resized, strict=True))
    wide = np.einsum("xw,hwc->hxc", columns, picture.astype(float)).round().clip(0, 255)
    full = np.einsum("yh,hxc->yxc", rows, wide).round().clip(0, 255)
    top, left = (round((side - 32) / 2) for side in resized)
    expected = full[top : top + 32, left : left + 32]

    result = resize_and_crop(picture, Preprocess(crop_ratio=0.875), (32, 32))

    assert result.shape == (32, 32, 3)
    assert np.abs(result.astype(float) - expected).max() <= 1  # Pillow rounds its weights


def test_normalise_is_the_formula_per_channel() -> None:
    preprocess = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    picture = random_picture(4, 5)
    result = normalise(picture, preprocess)
    assert result.dtype == np.float32
    for c in range(3):
        expected = (picture[:, :, c] / 255 - preprocess.mean[c]) / preprocess.std[c]
        np.testing.assert_allclose(result[c], expected, rtol=1e-5, atol=1e-6)


def test_denormalise_undoes_normalise_exactly() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert np.array_equal(denormalise(normalise(ramp, Preprocess()), Preprocess()), ramp)


def test_denormalise_clips() -> None:
    image = np.full((3, 1, 2), [100.0, -100.0], np.float32)
    assert denormalise(image, Preprocess()).tolist() == [[[255] * 3, [0] * 3]]


def test_a_picture_of_the_target_size_is_unchanged() -> None:
    picture = random_picture(48, 64)
    assert np.array_equal(resize_and_crop(picture, Preprocess(crop_ratio=1.0), (48, 64)), picture)


@pytest.mark.parametrize(
    ("size", "image_size", "expected"),
    [
        ((500, 375), (224, 224), (341, 256)),  # torchvision: int(256 * 500 / 375)
        ((375, 500), (224, 224), (256, 341)),
        ((10, 10), (384, 384), (438, 438)),  # int(384 / 0.875)
        ((100, 100), (224, 448), (512, 512)),  # the width decides
        ((100, 300), (224, 448), (256, 768)),  # the height decides
    ],
)
def test_resized_size(
    size: tuple[int, int], image_size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert resized_size(size, image_size, 0.875) == expected


@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), CROP_RATIOS)
def test_the_crop_always_fits_and_one_side_is_exact(
    size: tuple[int, int], image_size: tuple[int, int], crop_ratio: float
) -> None:
    targets = tuple(int(side / crop_ratio) for side in image_size)
    resized = resized_size(size, image_size, crop_ratio)
    assert resized[0] == targets[0] or resized[1] == targets[1]
    assert resized[0] >= image_size[0]
    assert resized[1] >= image_size[1]


@given(SIDES, SIDES, st.integers(1, 400), CROP_RATIOS)
def test_square_sizes_follow_torchvision(
    height: int, width: int, image_size: int, crop_ratio: float
) -> None:
    short, long = sorted((height, width))
    new_short = int(image_size / crop_ratio)
    new_long = int(new_short * long / short)
    resized = resized_size((height, width), (image_size, image_size), crop_ratio)
    assert resized == ((new_short, new_long) if height <= width else (new_long, new_short))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("crop_ratio", [0.875, 1.0])
def test_a_flat_picture_stays_flat(interpolation: str, crop_ratio: float) -> None:
    picture = np.full((37, 53, 3), (10, 100, 200), np.uint8)
    preprocess = Preprocess(crop_ratio=crop_ratio, interpolation=interpolation)
    result = resize_and_crop(picture, preprocess, (24, 40))
    assert result.shape == (24, 40, 3)
    assert (result == (10, 100, 200)).all()
