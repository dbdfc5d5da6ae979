"""The official test pipeline, and what of a picture cannot go through it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from svit_deploy.errors import InputError
from svit_deploy.images import load_images
from svit_deploy.images.padded import pad_picture, resize_bilinear
from svit_deploy.images.prepared import Prepared, groups, stacked
from svit_deploy.images.preprocess import normalise
from svit_deploy.model.config import Preprocess
from svit_deploy.model.sizes import SizeRange

SIZES = SizeRange((64, 64), (800, 1216), (1344, 1344), 32)


def prepare(picture: np.ndarray, sizes: SizeRange = SIZES) -> Prepared:
    """As mmdet's configuration for COCO has it."""
    return pad_picture(picture, (800, 1333), Preprocess(), sizes)


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((480, 640), (800, 1067), (800, 1088)),
        ((640, 480), (1067, 800), (1088, 800)),
        ((427, 640), (800, 1199), (800, 1216)),
        ((500, 333), (1201, 800), (1216, 800)),
        ((300, 1000), (400, 1333), (416, 1344)),
        ((1600, 2666), (800, 1333), (800, 1344)),
    ],
)
def test_sizes_are_those_of_mmdet(
    size: tuple[int, int], resized: tuple[int, int], padded: tuple[int, int]
) -> None:
    image = prepare(np.full((*size, 3), 255, np.uint8))
    assert (image.image_size, image.size, image.original_size) == (resized, padded, size)
    assert image.scale == pytest.approx([resized[1] / size[1], resized[0] / size[0]] * 2)
    white = (255 - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
    height, width = resized
    np.testing.assert_allclose(image.pixels[:, 0, 0], white, rtol=1e-5)
    np.testing.assert_allclose(image.pixels[:, height - 1, width - 1], white, rtol=1e-5)
    assert (image.pixels[:, height:] == 0).all() and (image.pixels[:, :, width:] == 0).all()


def test_a_fixed_size_is_filled_up() -> None:
    image = prepare(np.zeros((200, 100, 3), np.uint8), SizeRange.single((96, 128), 32))
    assert (image.size, image.image_size) == ((96, 128), (96, 48))


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (33, 20), (50, 50)])
def test_resizing_equals_a_plain_interpolation(size: tuple[int, int]) -> None:
    """PyTorch's bilinear resize without antialiasing, in float, to one grey level."""
    torch = pytest.importorskip("torch")
    picture = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    planes = torch.from_numpy(picture).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(planes, size=size, mode="bilinear")
    expected = expected[0].permute(1, 2, 0).numpy()
    assert np.abs(resize_bilinear(picture, size) - expected).max() <= 1


def test_resizing_to_the_same_size_changes_nothing() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    assert resize_bilinear(picture, (5, 6)) is picture


def test_too_long_and_thin_is_refused() -> None:
    with pytest.raises(InputError, match=r"high.*exported for 64 to 1344"):
        prepare(np.zeros((5, 400, 3), np.uint8))


def test_the_picture_inside_the_padding_is_what_the_model_sees() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (96, 40, 3), dtype=np.uint8)
    image = prepare(picture, SizeRange.single((96, 128), 32))
    assert np.array_equal(image.picture(Preprocess()), picture)
    whole = Prepared.whole(normalise(picture, Preprocess()), "a", 3)
    assert (whole.size, whole.image_size, whole.original_size) == ((96, 40),) * 3
    assert (whole.scale, whole.name, whole.label) == ((1, 1, 1, 1), "a", 3)


def blank(height: int, width: int) -> Prepared:
    return Prepared.whole(np.zeros((3, height, width), np.float32))


def test_empty_and_mixed_batches_are_refused() -> None:
    with pytest.raises(InputError, match="no image"):
        stacked([])
    with pytest.raises(InputError, match="different sizes"):
        stacked([blank(64, 64), blank(64, 96)])
    assert stacked([blank(64, 96)] * 2).shape == (2, 3, 64, 96)


@given(st.lists(st.integers(1, 3)), st.integers(1, 4))
def test_groups_are_neighbours_of_one_size(widths: list[int], most: int) -> None:
    images = [blank(1, width) for width in widths]
    found = list(groups(images, most))
    assert [image for group in found for image in group] == images
    assert all(1 <= len(group) <= most for group in found)
    assert all(len({image.size for image in group}) == 1 for group in found)
    for left, right in pairwise(found):  # as few groups as there can be
        assert left[0].size != right[0].size or len(left) == most


def test_pictures_of_any_kind(tmp_path: Path) -> None:
    """Grey, CMYK and turned pictures become upright RGB; a damaged one is named."""
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    rgb.convert("L").save(tmp_path / "a_grey.png")
    rgb.convert("CMYK").save(tmp_path / "b_cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    rgb.save(tmp_path / "c_turned.jpg", exif=exif)
    sizes = SizeRange.parse("64x64:96x128:256x256", 32)
    images = [prepare(picture, sizes) for picture in load_images(tmp_path).arrays]
    assert [image.original_size for image in images] == [(40, 60), (40, 60), (60, 40)]
    assert [image.size for image in images] == [(192, 256), (192, 256), (256, 192)]
    (tmp_path / "d_broken.jpg").write_bytes((tmp_path / "b_cmyk.jpg").read_bytes()[:200])
    with pytest.raises(InputError, match=r"d_broken.jpg cannot be read"):
        load_images(tmp_path)
