"""Images that are read one by one, in their order: those of a folder or a list, or an .npz."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from svit_deploy.errors import InputError
from svit_deploy.images.labels import check_labels, read_labels
from svit_deploy.images.medium import PICTURES, Medium, refuse_empty
from svit_deploy.io.files import reading
from svit_deploy.io.npz import read_header, read_npz, read_rows, reason

Kind = Literal["directory", "npz", "list", "synthetic"]
Load = Callable[[], np.ndarray]
LIST_SUFFIXES = (".txt", ".lst")
STANDARD_INPUT = Path("-")
MAX_LIST_BYTES = 2**28


class Images(Protocol):
    """Images in their order, in memory or read when each is wanted; see `ImageSource`."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> np.ndarray | None: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def preprocessed(self) -> bool: ...
    def __len__(self) -> int: ...
    def loaders(self) -> Iterator[Load]: ...
    def first(self, count: int) -> Images: ...


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Images that are read one by one.

    Attributes:
        names: one per image: the path below the folder with `/`, as a list has it, or one made
            from its number.
        labels: int64 `[n]`, if known.
        kind: where they come from.
        loaders: gives for every image in turn what reads it: an RGB picture uint8 `[h, w, 3]`, or
            an image that is already preprocessed, float32 `[3, H, W]`; of another medium what that
            gives. A loader may be called in another thread; it raises InputError.
        folder: the one that the names are below, of pictures that were searched for.
        preprocessed: whether a model can run them as they are.
    """

    names: tuple[str, ...]
    labels: np.ndarray | None
    kind: Kind
    loaders: Callable[[], Iterator[Load]]
    folder: Path | None = None
    preprocessed: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def first(self, count: int) -> ImageSource:
        """The first so many, or all that there are."""

        def loaders() -> Iterator[Load]:
            every = self.loaders()
            yield from islice(every, count)
            for _ in every if self.kind == "npz" else ():
                pass  # an archive's checksum is behind its last image

        labels = None if self.labels is None else self.labels[:count]
        return replace(self, names=self.names[:count], labels=labels, loaders=loaders)


def open_images(path: Path, labels: Path | None = None, medium: Medium = PICTURES) -> ImageSource:
    """What is at a path: a folder, a single picture, a list of pictures, or an .npz.

    A folder is searched recursively, in the order of the sorted paths; hidden files are left out
    and sub-folders imply no labels. A list is text, a path a line, relative to the list's folder;
    `-` is one that standard input holds, relative to the current one. An .npz holds `images`,
    either uint8 `[n, H, W, 3]` RGB or float32 `[n, 3, H, W]` already preprocessed, and optionally
    `labels`.

    Args:
        labels: a file that `read_labels` understands; it overrides the labels of an .npz.
        medium: what is there instead of pictures.

    Raises:
        InputError: nothing there, no pictures, an array of another type or shape, or labels that
            do not fit. Whether pictures are sound is found when they are read.
        CapabilityError: a package is missing that reads them.
    """
    suffix, noun = path.suffix.lower(), medium.noun
    if path == STANDARD_INPUT:
        content = sys.stdin.buffer.read(MAX_LIST_BYTES)
        names = _listed(content, "standard input", noun)
        return _files(Path(), names, labels, "list", medium)
    if medium.is_one(path):
        return _files(path.parent, [path.name], labels, "directory", medium)
    if path.is_dir():
        names = refuse_empty(path, medium.below(path), medium)
        return _files(path, names, labels, "directory", medium)
    if path.is_file() and suffix == ".npz":
        return _npz(path, labels, medium)
    if path.is_file() and suffix in LIST_SUFFIXES:
        with reading(path), path.open("rb") as file:
            content = file.read(MAX_LIST_BYTES)
        return _files(path.parent, _listed(content, str(path), noun), labels, "list", medium)
    if path.exists():
        raise InputError(
            f"{path} is not an image source",
            f"give a folder, an .npz, a list ({', '.join(LIST_SUFFIXES)}), or a {noun} "
            f"({', '.join(medium.suffixes)})",
        )
    raise InputError(f"image path {path} does not exist", f"give a folder, a {noun} or an .npz")


def _listed(content: bytes, where: str, noun: str) -> list[str]:
    """The lines of a list."""
    if len(content) == MAX_LIST_BYTES:
        raise InputError(f"{where} is no list of {noun}s: it is too long", "split it")
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{where} cannot be read ({reason(error)})", "write it as UTF-8") from None
    if not (names := [line for line in lines if line]):
        raise InputError(f"{where} names no {noun}s", "write one path per line")
    return names


def _files(
    folder: Path, names: Sequence[str], labels: Path | None, kind: Kind, medium: Medium
) -> ImageSource:
    for name in names:
        medium.require(folder / name)

    def load(name: str) -> np.ndarray:
        return medium.read(folder / name, name)

    def loaders() -> Iterator[Load]:
        return (partial(load, name) for name in names)

    values = None if labels is None else read_labels(labels, names)
    below = folder if kind == "directory" else None
    return ImageSource(tuple(names), values, kind, loaders, below)


def _npz(path: Path, labels: Path | None, medium: Medium) -> ImageSource:
    key, noun = medium.array, medium.noun
    header = read_header(path, key)
    if header is None:
        raise InputError(f"{path} has no array `{key}`", f"save the {key} with that name")
    shape, dtype = header.shape, header.dtype
    make = medium.row_reader(shape, dtype)
    if make is None:
        raise InputError(
            f"`{key}` in {path} is {dtype} {list(shape)}, neither {noun}s nor model inputs",
            f"save {medium.forms}",
        )
    if 0 in shape:
        raise InputError(f"`{key}` in {path} is empty {list(shape)}", f"save some {key}")
    names = tuple(f"{path.stem}-{i:05d}" for i in range(shape[0]))
    values = None
    if labels is not None:
        values = read_labels(labels, names)
    elif found := read_npz(path, ["labels"]):
        values = check_labels(found["labels"], len(names), str(path))

    def load(row: np.ndarray, name: str) -> np.ndarray:
        if dtype == np.float32 and not np.isfinite(row).all():
            raise InputError(f"image {name} in {path} holds NaN or Inf", "repair or remove it")
        return make(row, name)

    def loaders() -> Iterator[Load]:
        for row, name in zip(read_rows(path, key), names, strict=True):
            yield partial(load, row, name)

    return ImageSource(names, values, "npz", loaders, preprocessed=dtype == np.float32)
