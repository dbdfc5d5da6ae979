"""Images one by one: lists, standard input, and archives that are never whole in memory."""

from __future__ import annotations

import io
import os
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from svit_deploy.errors import InputError, UsageError
from svit_deploy.images import load_images, open_images, read_through, source_of
from svit_deploy.images.medium import Medium
from svit_deploy.io.npz import read_rows
from svit_deploy.progress import SILENT

PICTURES = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, picture in zip("abcd", PICTURES, strict=True):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    return tmp_path


def arrays(source: object) -> list[np.ndarray]:
    return [load() for load in source.loaders()]  # type: ignore[attr-defined]


def test_a_list_names_pictures_below_its_folder(folder: Path) -> None:
    (folder / "some.txt").write_text(f"\n  c.png\n{folder / 'a.png'}\n\nc.png\n")
    source = open_images(folder / "some.txt")
    assert source.names == ("c.png", str(folder / "a.png"), "c.png")
    assert [np.array_equal(a, PICTURES[i]) for a, i in zip(arrays(source), (2, 0, 2), strict=True)]
    assert source.kind == "list" and source.labels is None
    assert len(load_images(folder / "some.txt", limit=2)) == 2


def test_standard_input_names_pictures_below_the_current_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"b.png\r\na.png")))
    source = open_images(Path("-"))
    assert source.names == ("b.png", "a.png")
    assert np.array_equal(arrays(source)[0], PICTURES[1])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "names no pictures"),
        (b" \n\n", "names no pictures"),
        (b"\xff\xfe", "cannot be read"),
        (b"x" * 300, "too long"),
    ],
)
def test_bad_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, words: str
) -> None:
    monkeypatch.setattr("svit_deploy.images.source.MAX_LIST_BYTES", 300)
    (tmp_path / "list.lst").write_bytes(content)
    with pytest.raises(InputError, match=words):
        open_images(tmp_path / "list.lst")


def test_a_listed_picture_that_is_not_there(folder: Path) -> None:
    (folder / "some.txt").write_text("a.png\nnone.png\n")
    source = open_images(folder / "some.txt")
    first, second = source.loaders()
    assert np.array_equal(first(), PICTURES[0])
    with pytest.raises(InputError, match=r"none.png cannot be read \(.*No such file"):
        second()


@pytest.mark.skipif(sys.platform == "win32", reason="no such pipes")
def test_a_listed_pipe_that_nobody_writes_to(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "some.txt").write_text("pipe.png\n")
    (load,) = open_images(folder / "some.txt").loaders()
    with pytest.raises(InputError, match=r"pipe.png cannot be read \(it is no file\)"):
        load()


def test_a_folder_is_read_when_it_is_asked_for(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"damaged")
    source = open_images(folder)
    loaders = list(source.loaders())
    assert np.array_equal(loaders[2](), PICTURES[2])
    with pytest.raises(InputError, match=r"b.png cannot be read"):
        loaders[1]()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_an_archive(tmp_path: Path, save: object, order: str) -> None:
    path = tmp_path / "set.npz"
    save(path, images=np.asarray(PICTURES, order=order), labels=np.arange(4))  # type: ignore
    assert np.array_equal(np.stack(list(read_rows(path, "images"))), PICTURES)
    source = open_images(path)
    assert np.array_equal(np.stack(arrays(source)), PICTURES)
    assert np.array_equal(np.stack(arrays(source)), PICTURES)  # and again
    assert source.labels is not None and source.labels.tolist() == [0, 1, 2, 3]


def test_an_archive_is_not_whole_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, images=PICTURES)

    def refuse(path: Path, keys: list[str], **options: object) -> dict[str, np.ndarray]:
        assert keys == ["labels"]
        return {}

    monkeypatch.setattr("svit_deploy.images.source.read_npz", refuse)
    monkeypatch.setattr("svit_deploy.io.npz.read_npz", refuse)
    source = open_images(path)
    first = next(source.loaders())()
    assert np.array_equal(first, PICTURES[0])
    base = first
    while base.base is not None and isinstance(base.base, np.ndarray):
        base = base.base
    assert base.nbytes == PICTURES[0].nbytes


def test_damage_behind_the_images_taken_is_found(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, images=PICTURES)
    content = bytearray(path.read_bytes())
    place = content.index(PICTURES[3].tobytes()[:32])
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        load_images(path, limit=1)


def test_a_set_in_memory_is_a_source_too(folder: Path) -> None:
    images = load_images(folder)
    source = source_of(images)
    assert source.names == images.names
    assert all(map(np.array_equal, arrays(source), PICTURES))


def test_images_are_read_through_once_and_none_is_held(folder: Path) -> None:
    (folder / "labels.txt").write_text("3\n1\n4\n1\n")
    read: list[weakref.ref[np.ndarray]] = []

    class Watched(Medium):
        def read(self, path: Path, name: str) -> np.ndarray:
            assert all(array() is None for array in read)
            read.append(weakref.ref(array := super().read(path, name)))
            return array

    labels = folder / "labels.txt"
    images = read_through(folder, 3, SILENT, labels, Watched())
    assert images is not None and len(read) == len(images) == 3
    assert images.labels is not None and images.labels.tolist() == [3, 1, 4]
    for load, picture in zip(images.loaders(), PICTURES, strict=False):
        assert np.array_equal(load(), picture)
    assert len(read) == 6
    (folder / "c.png").write_bytes(b"no picture")
    assert read_through(folder, 2, SILENT) is not None
    with pytest.raises(InputError, match=r"c\.png cannot be read"):
        read_through(folder, 3, SILENT)
    with pytest.raises(UsageError, match="a limit of 0 images leaves none"):
        read_through(folder, 0, SILENT)
