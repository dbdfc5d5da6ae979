"""Image sets: all pictures of a source in memory, or synthetic ones, with labels if any."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import overload

import numpy as np

from svit_deploy.errors import InputError, UsageError
from svit_deploy.images.medium import PICTURES, Medium
from svit_deploy.images.preprocess import denormalise, normalise, resize_and_crop
from svit_deploy.images.source import Images, ImageSource, Kind, Load, open_images
from svit_deploy.images.synthetic import paint_scene
from svit_deploy.model.config import Preprocess
from svit_deploy.progress import Progress


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images to feed a model, all in memory.

    Attributes:
        arrays: a list of RGB pictures, uint8 `[h, w, 3]` each of its own size, or images that
            are already preprocessed, float32 `[n, 3, H, W]`.
        names: one per image: the path below the folder with `/`, or one made from its number.
        labels: int64 `[n]`, if known.
        sha256: hash of the arrays in their order; names and labels do not enter.
        kind: where they come from.
    """

    arrays: list[np.ndarray] | np.ndarray
    names: tuple[str, ...]
    labels: np.ndarray | None
    sha256: str
    kind: Kind

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def preprocessed(self) -> bool:
        """Whether a model can run them as they are."""
        return isinstance(self.arrays, np.ndarray)

    def __getitem__(self, images: slice) -> ImageSet:
        labels = None if self.labels is None else self.labels[images]
        return _image_set(self.arrays[images], self.names[images], labels, self.kind)

    def first(self, count: int) -> ImageSet:
        """The first so many, or all that there are."""
        return self[:count] if count < len(self) else self

    def loaders(self) -> Iterator[Load]:
        """See `ImageSource.loaders`."""
        return (partial(np.asarray, array) for array in self.arrays)

    def stream(self) -> ImageSource:
        """The same, to be taken one by one."""
        return ImageSource(
            self.names, self.labels, self.kind, self.loaders, preprocessed=self.preprocessed
        )

    def inputs(self, preprocess: Preprocess, image_size: tuple[int, int]) -> np.ndarray:
        """The graph's input, float32 `[n, 3, H, W]`; images already preprocessed as they are.

        Raises:
            InputError: preprocessed images of another size.
        """
        if isinstance(self.arrays, np.ndarray):
            self._check_size(image_size)
            return self.arrays
        inputs = np.empty((len(self), 3, *image_size), np.float32)
        for i, picture in enumerate(self.arrays):
            inputs[i] = normalise(resize_and_crop(picture, preprocess, image_size), preprocess)
        return inputs

    def pictures(self, preprocess: Preprocess, image_size: tuple[int, int]) -> np.ndarray:
        """What the model sees, for the eye: uint8 `[n, H, W, 3]`, resized and cropped.

        Raises:
            InputError: preprocessed images of another size.
        """
        if isinstance(self.arrays, np.ndarray):
            self._check_size(image_size)
            return np.stack([denormalise(image, preprocess) for image in self.arrays])
        return np.stack([resize_and_crop(p, preprocess, image_size) for p in self.arrays])

    def _check_size(self, image_size: tuple[int, int]) -> None:
        height, width = np.shape(self.arrays)[2:]
        if (height, width) != tuple(image_size):
            raise InputError(
                f"the preprocessed images are {height}x{width}, "
                f"the model expects {image_size[0]}x{image_size[1]}",
                "preprocess them to that size, or give raw pictures as uint8 [n, H, W, 3]",
            )


def load_images(
    path: Path,
    *,
    labels: Path | None = None,
    limit: int | None = None,
    medium: Medium = PICTURES,
) -> ImageSet:
    """Loads what `open_images` finds.

    Args:
        labels: a file that `read_labels` understands, for all images at `path`; it overrides
            the labels of an .npz.
        limit: take only the first images. All are held in memory, so give one for large sets.
        medium: what is read instead of pictures.

    Raises:
        InputError: see `open_images`; or a picture or archive is damaged.
        UsageError: `limit` is below 1.
    """
    return load_all(_opened(path, limit, labels, medium))


def load_all(images: Images) -> ImageSet:
    """All of them in memory; raises InputError for one that is damaged."""
    each = (load() for load in images.loaders())
    first = next(each)
    arrays: list[np.ndarray] | np.ndarray
    if first.dtype == np.uint8:
        arrays = [first, *each]
    else:
        arrays = np.empty((len(images), *first.shape), first.dtype)
        for i, array in enumerate(chain([first], each)):
            arrays[i] = array
    return _image_set(arrays, images.names, images.labels, images.kind)


def check_images(images: Path | ImageSet | None, medium: Medium = PICTURES) -> None:
    """Raises a SvitDeployError for what cannot be read at all; call it before a long run."""
    if isinstance(images, Path) and str(images) != "-":  # which can be read once
        open_images(images, medium=medium)


@overload
def images_of(value: None, limit: int, progress: Progress, medium: Medium = PICTURES) -> None: ...
@overload
def images_of(
    value: Path | ImageSet, limit: int, progress: Progress, medium: Medium = PICTURES
) -> ImageSet: ...
def images_of(
    value: Path | ImageSet | None, limit: int, progress: Progress, medium: Medium = PICTURES
) -> ImageSet | None:
    """The images of a settings' field, at most `limit`; loaded unless they are already.

    Raises:
        InputError: see `load_images`.
    """
    if value is None:
        return None
    if not isinstance(value, Path):
        return value.first(limit)
    progress.update(f"reading {value.name}", 0)
    return load_images(value, limit=limit, medium=medium)


def read_through(
    value: Path | ImageSet | None,
    limit: int,
    progress: Progress,
    labels: Path | None = None,
    medium: Medium = PICTURES,
) -> Images | None:
    """The same, none held in memory: each is read when it is wanted.

    All are read here once, so that one that cannot be is told before a long run.

    Raises:
        InputError, UsageError: see `load_images`.
    """
    if not isinstance(value, Path):
        return None if value is None else value.first(limit)
    progress.update(f"reading {value.name}", 0)
    source = _opened(value, limit, labels, medium)
    for load in source.loaders():
        load()
    return source


def _opened(path: Path, limit: int | None, labels: Path | None, medium: Medium) -> ImageSource:
    """What `open_images` finds, at most `limit`; raises UsageError for less than one."""
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} images leaves none", "give 1 or more")
    source = open_images(path, labels, medium)
    return source if limit is None else source.first(limit)


def source_of(value: Path | ImageSet, medium: Medium = PICTURES) -> ImageSource:
    """The images of a settings' field, to be read one by one; raises InputError."""
    return open_images(value, medium=medium) if isinstance(value, Path) else value.stream()


def synthetic_images(count: int, image_size: tuple[int, int], *, seed: int = 0) -> ImageSet:
    """Paints `count` pictures of `image_size` (see `svit_deploy.images.synthetic`).

    The same `seed` gives the same bytes on every machine; picture `i` is the same whatever
    `count` is.

    Raises:
        UsageError: `count` is below 1.
    """
    if count < 1:
        raise UsageError(f"{count} synthetic images are too few", "ask for 1 or more")
    generators = [np.random.Generator(np.random.PCG64([seed, i])) for i in range(count)]
    pictures = [paint_scene(*image_size, rng) for rng in generators]
    return _image_set(pictures, [f"synthetic-{i:05d}" for i in range(count)], None, "synthetic")


def synthetic_videos(
    count: int, frames: int, image_size: tuple[int, int], *, seed: int = 0
) -> ImageSet:
    """The same of videos that a camera takes of painted scenes: two clips of each.

    In the first it moves to the right and down, in the second to the left.
    """
    height, width = image_size
    reach = max(2, min(height, width) // 8)
    scenes = synthetic_images(count, (height + reach, width + reach), seed=seed)
    steps = (np.arange(frames) * reach // max(frames - 1, 1)).tolist()
    videos = [
        np.stack(
            [
                [scene[s : s + height, s : s + width] for s in steps],
                [scene[:height, reach - s : reach - s + width] for s in steps],
            ]
        )
        for scene in scenes.arrays
    ]
    return _image_set(videos, scenes.names, None, "synthetic")


def join_images(sets: Sequence[ImageSet], names: Sequence[str]) -> ImageSet:
    """Pictures of several sets as one, under other names, without labels."""
    pictures = [picture for one in sets for picture in one.arrays]
    return _image_set(pictures, names, None, sets[0].kind)


def _image_set(
    arrays: list[np.ndarray] | np.ndarray,
    names: Sequence[str],
    labels: np.ndarray | None,
    kind: Kind,
) -> ImageSet:
    """Completes an image set: hashes the content, cuts names and labels to fit."""
    names = tuple(names[: len(arrays)])
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    labels = None if labels is None else labels[: len(arrays)]
    return ImageSet(arrays, names, labels, digest.hexdigest(), kind)
