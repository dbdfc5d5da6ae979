"""Loading pictures and arrays that are fine, and painting synthetic ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svit_deploy.errors import InputError, UsageError
from svit_deploy.images import load_images, read_picture, synthetic_images
from svit_deploy.images.preprocess import normalise, resize_and_crop
from svit_deploy.model.config import Preprocess

PREPROCESS = Preprocess()
WHOLE = Preprocess(crop_ratio=1.0)
# The corners of the 2 x 2 picture: red, green / blue, white.
CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)


def random_pictures(count: int, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def save_folder(folder: Path, pictures: np.ndarray, names: list[str]) -> Path:
    for name, picture in zip(names, pictures, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / name)
    return folder


def test_a_folder_is_read_recursively_sorted_and_without_hidden_files(tmp_path: Path) -> None:
    pictures = random_pictures(5)
    names = ["b/2.png", "a.BMP", "b/1.tif", ".hidden.png", ".cache/x.png"]
    folder = save_folder(tmp_path, pictures, names)
    (folder / "notes.txt").write_text("not a picture")
    (folder / "folder.png").mkdir()

    images = load_images(folder)

    assert images.names == ("a.BMP", "b/1.tif", "b/2.png")
    assert images.kind == "directory"
    assert images.labels is None
    assert len(images) == 3
    for array, i in zip(images.arrays, (1, 2, 0), strict=True):
        assert np.array_equal(array, pictures[i])


def test_a_single_picture(tmp_path: Path) -> None:
    save_folder(tmp_path, random_pictures(2), ["a.png", "b.png"])
    images = load_images(tmp_path / "b.png")
    assert images.names == ("b.png",)


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "bmp", "webp", "tif", "tiff"])
def test_every_format(tmp_path: Path, suffix: str) -> None:
    flat = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    Image.fromarray(flat).save(tmp_path / f"x.{suffix}")
    picture = read_picture(tmp_path / f"x.{suffix}")
    assert picture.dtype == np.uint8
    assert np.abs(picture.astype(int) - flat).max() <= 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    black_white = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    Image.fromarray(black_white).convert(mode).save(tmp_path / "x.png")
    assert np.array_equal(read_picture(tmp_path / "x.png"), black_white)


def test_transparency_is_dropped(tmp_path: Path) -> None:
    image = Image.fromarray(CORNERS)
    image.putalpha(0)
    image.save(tmp_path / "x.png")
    assert np.array_equal(read_picture(tmp_path / "x.png"), CORNERS)


def test_a_palette_with_transparency_is_read_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    image = Image.fromarray(CORNERS).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    image.save(tmp_path / "x.png", transparency=bytes([0, 128, 255, 255]))
    assert np.array_equal(read_picture(tmp_path / "x.png"), CORNERS)
    assert not recwarn.list


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg")
    assert np.abs(read_picture(tmp_path / "x.jpg").astype(int) - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    assert read_picture(tmp_path / f"x.{suffix}")[0].tolist() == [
        [v] * 3 for v in (0, 0, 1, 128, 255)
    ]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [(1, CORNERS), (2, CORNERS[:, ::-1]), (3, np.rot90(CORNERS, 2)), (6, np.rot90(CORNERS, -1))],
)
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, expected: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(CORNERS).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "x.png"), expected)


def test_raw_npz_and_folder_of_the_same_pictures_are_the_same(tmp_path: Path) -> None:
    pictures = random_pictures(3)
    folder = save_folder(tmp_path / "folder", pictures, ["0.png", "1.png", "2.png"])
    np.savez(tmp_path / "set.npz", images=pictures, labels=np.array([2, 0, 1], np.int16))
    from_folder, from_npz = load_images(folder), load_images(tmp_path / "set.npz")

    assert from_npz.kind == "npz"
    assert from_npz.names == ("set-00000", "set-00001", "set-00002")
    assert from_npz.labels is not None
    assert from_npz.labels.dtype == np.int64
    assert from_npz.labels.tolist() == [2, 0, 1]
    assert from_npz.sha256 == from_folder.sha256
    expected = np.stack(
        [normalise(resize_and_crop(p, PREPROCESS, (8, 8)), PREPROCESS) for p in pictures]
    )
    for images in (from_npz, from_folder):
        inputs = images.inputs(PREPROCESS, (8, 8))
        assert inputs.dtype == np.float32
        assert np.array_equal(inputs, expected)
        shown = images.pictures(PREPROCESS, (8, 8))
        assert shown.dtype == np.uint8
        assert np.array_equal(np.stack([normalise(p, PREPROCESS) for p in shown]), expected)


def test_preprocessed_npz_is_taken_as_it_is(tmp_path: Path) -> None:
    pictures = random_pictures(2)
    ready = np.stack([normalise(p, PREPROCESS) for p in pictures])
    np.savez(tmp_path / "set.npz", images=ready)
    images = load_images(tmp_path / "set.npz")
    assert np.array_equal(images.inputs(PREPROCESS, (12, 16)), ready)
    assert np.array_equal(images.pictures(PREPROCESS, (12, 16)), pictures)
    for method in (images.inputs, images.pictures):
        with pytest.raises(InputError, match=r"are 12x16, the model expects 224x320"):
            method(PREPROCESS, (224, 320))


def test_the_hash_follows_content_and_order(tmp_path: Path) -> None:
    pictures = random_pictures(3)
    hashes = set()
    for name, arrays in {
        "original": pictures,
        "reordered": pictures[::-1],
        "reshaped": pictures.reshape(3, 16, 12, 3),
        "fewer": pictures[:2],
    }.items():
        np.savez(tmp_path / f"{name}.npz", images=arrays)
        hashes.add(load_images(tmp_path / f"{name}.npz").sha256)
    assert len(hashes) == 4
    assert load_images(tmp_path / "original.npz", limit=2).sha256 in hashes


def test_limit_and_labels_of_the_whole_set(tmp_path: Path) -> None:
    pictures = random_pictures(3)
    folder = save_folder(tmp_path / "folder", pictures, ["0.png", "1.png", "2.png"])
    (folder / "2.png").write_bytes(b"damaged, but never read")
    labels = tmp_path / "labels.txt"
    labels.write_text("5\n6\n7\n")
    images = load_images(folder, labels=labels, limit=2)
    assert images.names == ("0.png", "1.png")
    assert images.labels is not None
    assert images.labels.tolist() == [5, 6]

    np.savez(tmp_path / "set.npz", images=pictures, labels=np.array([1, 2, 3]))
    overridden = load_images(tmp_path / "set.npz", labels=labels, limit=9)
    assert overridden.labels is not None
    assert overridden.labels.tolist() == [5, 6, 7]


def test_non_positive_counts_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        load_images(tmp_path, limit=0)
    with pytest.raises(UsageError):
        synthetic_images(0, (8, 8))


def test_synthetic_images_are_the_same_everywhere() -> None:
    images = synthetic_images(3, (32, 48), seed=7)
    assert images.kind == "synthetic"
    assert images.names == ("synthetic-00000", "synthetic-00001", "synthetic-00002")
    assert [picture.shape for picture in images.arrays] == [(32, 48, 3)] * 3
    assert images.sha256 == "0bbd0453b3a166b7feca53ec6b541df7458f08b3774df85cecc3f0194804139e"


def test_synthetic_images_do_not_depend_on_their_number() -> None:
    few, many = synthetic_images(2, (32, 32)), synthetic_images(5, (32, 32))
    assert np.array_equal(few.arrays, many.arrays[:2])
    assert few.sha256 != synthetic_images(2, (32, 32), seed=1).sha256


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (33, 17)])
def test_synthetic_images_of_odd_sizes(size: tuple[int, int]) -> None:
    assert synthetic_images(1, size).inputs(WHOLE, size).shape == (1, 3, *size)


def test_synthetic_content_varies_between_images_and_patches() -> None:
    images = np.stack(list(synthetic_images(64, (64, 64)).arrays)).astype(float).mean(axis=3)
    contrast = images.reshape(64, 8, 8, 8, 8).std(axis=(2, 4))  # [image, row, column]
    per_image = contrast.mean(axis=(1, 2))
    assert 90 < images.mean() < 165
    assert np.quantile(per_image, 0.9) > 2 * np.quantile(per_image, 0.1)
    assert np.median(contrast.std(axis=(1, 2)) / per_image) > 0.3


@pytest.mark.slow
def test_synthetic_texture_has_a_natural_spectrum() -> None:
    """Natural pictures: amplitude about 1 / f, so power about f ** -2."""
    images = np.stack(list(synthetic_images(64, (128, 128)).arrays)).astype(float).mean(axis=3)
    window = np.hanning(128)[:, None] * np.hanning(128)
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    power = (np.abs(np.fft.fft2(centred * window)) ** 2).mean(axis=0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    band = (frequency > 0.02) & (frequency < 0.25)
    slope = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]
    assert -3.0 < slope < -2.0
