"""Bad pictures, arrays and label files: one clear sentence each, exit code 3."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from svit_deploy.errors import EXIT_INPUT, InputError
from svit_deploy.images import load_images

RAW = np.zeros((3, 8, 8, 3), np.uint8)
READY = np.zeros((3, 3, 8, 8), np.float32)


def refusal(path: Path, labels: Path | None = None) -> str:
    """The sentence that loading `path` ends with."""
    with pytest.raises(InputError) as caught:
        load_images(path, labels=labels)
    assert caught.value.exit_code == EXIT_INPUT == 3
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert caught.value.fix
    return sentence


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


NOISE_PNG = png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def test_missing_path(tmp_path: Path) -> None:
    assert "nowhere does not exist" in refusal(tmp_path / "nowhere")


def test_folder_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(NOISE_PNG)
    assert "holds no pictures" in refusal(tmp_path)


def test_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "movie.mp4").write_bytes(b"x")
    assert "not an image source; give a folder, an .npz" in refusal(tmp_path / "movie.mp4")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a PNG"),
        (b"<!DOCTYPE html><html>404</html>", "not a PNG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not a PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a PNG"),
        (NOISE_PNG[:20], "Truncated"),
        (NOISE_PNG[: len(NOISE_PNG) // 2], "truncated"),
        (NOISE_PNG[:100] + bytes(300) + NOISE_PNG[400:], "cannot be read"),
    ],
    ids=["empty", "html", "lfs", "eps", "header", "half", "damaged"],
)
def test_damaged_picture_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.png").write_bytes(NOISE_PNG)
    (tmp_path / "b.png").write_bytes(content)
    sentence = refusal(tmp_path)
    assert "b.png cannot be read" in sentence
    assert words in sentence


@pytest.mark.parametrize("limit", [3000, 1000])  # Pillow warns above its limit, fails above twice
def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    (tmp_path / "bomb.png").write_bytes(NOISE_PNG)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert f"bomb.png has more than {limit} pixels" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.full((4, 4), 0.5, np.float32), "float pixels"),
        (np.full((4, 4), 70000, np.int32), "32-bit pixels"),
        (np.zeros((1, 5000, 3), np.uint8), "1x5000, too long and thin"),
    ],
)
def test_pictures_without_a_sensible_meaning(
    tmp_path: Path, picture: np.ndarray, words: str
) -> None:
    Image.fromarray(picture).save(tmp_path / "x.tif")
    sentence = refusal(tmp_path / "x.tif")
    assert "x.tif" in sentence
    assert words in sentence


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures": RAW}, "no array `images`"),
        ({"images": RAW.astype(object)}, "Object arrays cannot be loaded"),
        ({"images": READY.transpose(0, 2, 3, 1)}, "float32 [3, 8, 8, 3], neither"),
        ({"images": RAW.transpose(0, 3, 1, 2)}, "uint8 [3, 3, 8, 8], neither"),
        ({"images": RAW[..., 0]}, "uint8 [3, 8, 8], neither"),
        ({"images": RAW[0]}, "uint8 [8, 8, 3], neither"),
        ({"images": READY.astype(np.float64)}, "float64 [3, 3, 8, 8], neither"),
        ({"images": RAW.astype(np.int64)}, "int64 [3, 8, 8, 3], neither"),
        ({"images": RAW[:0]}, "is empty [0, 8, 8, 3]"),
        ({"images": RAW[:, :0]}, "is empty [3, 0, 8, 3]"),
        ({"images": np.zeros((1, 2, 900, 3), np.uint8)}, "x-00000 is 2x900, too long and thin"),
        ({"images": np.where(np.arange(3)[:, None, None, None] == 1, np.nan, READY)}, "NaN or"),
        ({"images": RAW, "labels": np.arange(4)}, "holds 4 labels for 3 images"),
        ({"images": RAW, "labels": np.zeros((3, 1), int)}, "labels of shape (3, 1) for 3 images"),
        ({"images": RAW, "labels": np.array([0.0, 1.0, 2.0])}, "not integers (float64)"),
        ({"images": RAW, "labels": np.array([0, -1, 2])}, "negative label -1"),
        ({"images": RAW, "labels": np.array([0, 1, 2], object)}, "Object arrays"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    sentence = refusal(tmp_path / "x.npz")
    assert "x.npz" in sentence or "x-0" in sentence
    assert words in sentence


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_images_are_named(tmp_path: Path, value: float) -> None:
    images = READY.copy()
    images[1, 2, 3, 4] = value
    np.savez(tmp_path / "x.npz", images=images)
    assert "x-00001" in (sentence := refusal(tmp_path / "x.npz"))
    assert "NaN or Inf" in sentence
    assert len(load_images(tmp_path / "x.npz", limit=1)) == 1


def saved(function: Callable[..., None], *arguments: object, **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    function(buffer, *arguments, **arrays)
    return buffer.getvalue()


def with_header(shape: str) -> bytes:
    """An .npz whose `images` claims `shape` and holds eight bytes."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(8)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("images.npy", member)
    return buffer.getvalue()


NPZ = saved(np.savez, images=RAW)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>not found</html>",
        pickle.dumps({"images": RAW}),
        saved(np.save, RAW),
        NPZ[: len(NPZ) // 2],
    ],
    ids=["empty", "html", "pickle", "npy", "truncated"],
)
def test_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    assert "x.npz is not an .npz archive or is truncated" in refusal(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "content",
    [
        NPZ.replace(b"descr", b"d\xffscr"),
        NPZ.replace(bytes(64), bytes(63) + b"\x01", 1),
        with_header("(9, 8, 8, 3)"),
        with_header("(10**9, 8, 8, 3)"),
        with_header("(999999999999, 9999, 9999, 3)"),
        with_header("(-1, 8, 8, 3)"),
        with_header("(1, 1, 1, 3)").replace(b"NUMPY", b"NUMPI"),
    ],
    ids=["header", "checksum", "short", "expression", "huge", "negative", "magic"],
)
def test_damaged_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    assert "x.npz cannot be read" in refusal(tmp_path / "x.npz")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(NOISE_PNG)
    return tmp_path / "pictures"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "0 labels for 3 images"),
        ("1\n2\n", "2 labels for 3 images"),
        ("1\n2\n3\n4\n", "4 labels for 3 images"),
        ("1\ncat\n3\n", "'cat' in"),
        ("1\n2.5\n3\n", "'2.5' in"),
        ("1\n-2\n3\n", "negative label -2"),
        (f"1\n2\n{2**70}\n", "not integers"),
        ("a/1.png 1\na/2.png 2\n", "2 labels for 3 images, none for b/1.png"),
        ("a/1.png 1\na/2.png 2\nb/9.png 3\n", "'b/9.png', the name of no picture"),
        ("1.png 1\n2.png 2\nb/1.png 3\n", "'1.png', the name of no picture or of several"),
        ("a/1.png 1\na/2.png 2\n2.png 3\n", "'2.png' twice"),
        ("a/1.png 1\na/2.png\nb/1.png 3\n", "'a/2.png' in"),
        ("a/1.png,1\n2\n3\n", "the name of no picture"),
        ("name,label\na/1.png,1\n", "'label' in"),
    ],
)
def test_bad_label_text(folder: Path, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "labels.txt").write_text(text)
    sentence = refusal(folder, tmp_path / "labels.txt")
    assert "labels.txt" in sentence
    assert words in sentence


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("labels.txt", b"\xff\xfe\x00binary", "cannot be read"),
        ("labels.npy", b"", "cannot be read"),
        ("labels.npy", saved(np.save, np.arange(3))[:-8], "cannot be read"),
        ("labels.npy", saved(np.save, np.array([1, 2, 3], object)), "Object arrays"),
        ("labels.npy", saved(np.save, np.arange(3.0)), "not integers"),
        ("labels.npy", saved(np.save, np.array(3)), "labels of shape () for 3 images"),
        ("labels.npz", saved(np.savez, targets=np.arange(3)), "no array `labels`"),
        ("labels.npz", b"PK", "not an .npz archive"),
    ],
)
def test_bad_label_file(
    folder: Path, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    sentence = refusal(folder, tmp_path / name)
    assert name in sentence
    assert words in sentence


def test_missing_label_file(folder: Path, tmp_path: Path) -> None:
    assert "labels.txt does not exist" in refusal(folder, tmp_path / "labels.txt")
    assert "pictures does not exist" in refusal(folder, folder)


def test_an_npz_that_declares_too_much_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("svit_deploy.io.npz.read_npz.__kwdefaults__", {"max_bytes": 10**6})
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, images=np.zeros((100, 64, 64, 3), np.uint8))
    assert path.stat().st_size < 10_000
    with pytest.raises(InputError, match="would unpack to 122") as caught:
        load_images(path)
    assert caught.value.exit_code == 3
