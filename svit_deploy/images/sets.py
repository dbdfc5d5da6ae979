"""Image sets: pictures from a folder or an .npz, or synthetic ones, with labels if any."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from svit_deploy.errors import InputError, UsageError
from svit_deploy.images.labels import check_labels, read_labels
from svit_deploy.images.preprocess import denormalise, normalise, resize_and_crop
from svit_deploy.images.synthetic import paint_scene
from svit_deploy.io.npz import read_npz, reason
from svit_deploy.model.config import Preprocess
from svit_deploy.progress import Progress

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
# What a file holds decides, not its name: without this list Pillow would also try formats that
# run other programs, such as EPS.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
_MAX_ASPECT_RATIO = 100


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images to feed a model, all in memory.

    Attributes:
        arrays: a list of RGB pictures, uint8 `[h, w, 3]` each of its own size, or images that
            are already preprocessed, float32 `[n, 3, H, W]`.
        names: one per image: the path below the folder with `/`, or one made from its number.
        labels: int64 `[n]`, if known.
        sha256: hash of the arrays in their order; names and labels do not enter.
        source: where they come from.
    """

    arrays: list[np.ndarray] | np.ndarray
    names: tuple[str, ...]
    labels: np.ndarray | None
    sha256: str
    source: Literal["directory", "npz", "synthetic"]

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, images: slice) -> ImageSet:
        labels = None if self.labels is None else self.labels[images]
        return _image_set(self.arrays[images], self.names[images], labels, self.source)

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


def load_images(path: Path, *, labels: Path | None = None, limit: int | None = None) -> ImageSet:
    """Loads pictures from a folder, a single picture, or an .npz.

    A folder is searched recursively, in the order of the sorted paths; hidden files are left
    out and sub-folders imply no labels. An .npz holds `images`, either uint8 `[n, H, W, 3]` RGB
    or float32 `[n, 3, H, W]` already preprocessed, and optionally `labels`.

    Args:
        path: folder, picture or .npz.
        labels: a file that `read_labels` understands, for all images at `path`; it overrides
            the labels of an .npz.
        limit: take only the first images. All are held in memory, so give one for large sets.

    Raises:
        InputError: nothing there, a picture or archive is damaged, an array has the wrong type,
            shape or values, or the labels do not fit.
        UsageError: `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} images leaves none", "give 1 or more")
    check_images(path)
    load = _load_npz if path.suffix.lower() == ".npz" and path.is_file() else _load_pictures
    return load(path, labels, limit)


def check_images(images: Path | ImageSet | None) -> None:
    """Raises InputError for a path that holds no images; call it before a long run."""
    if images is None or not isinstance(images, Path):
        return
    path, suffix = images, images.suffix.lower()
    if path.is_dir() or (path.is_file() and suffix in (*PICTURE_SUFFIXES, ".npz")):
        return
    if path.exists():
        raise InputError(
            f"{path} is not an image source",
            f"give a folder, an .npz, or a picture ({', '.join(PICTURE_SUFFIXES)})",
        )
    raise InputError(f"image path {path} does not exist", "give a folder, a picture or an .npz")


@overload
def images_of(value: None, limit: int, progress: Progress, labels: Path | None = None) -> None: ...
@overload
def images_of(
    value: Path | ImageSet, limit: int, progress: Progress, labels: Path | None = None
) -> ImageSet: ...
def images_of(
    value: Path | ImageSet | None, limit: int, progress: Progress, labels: Path | None = None
) -> ImageSet | None:
    """The images of a settings' field, at most `limit`; loaded unless they are already.

    Raises:
        InputError: see `load_images`.
    """
    if value is None:
        return None
    if not isinstance(value, Path):
        return value[:limit] if len(value) > limit else value
    progress.update(f"reading {value.name}", 0)
    return load_images(value, labels=labels, limit=limit)


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


def read_picture(path: Path) -> np.ndarray:
    """Decodes a picture upright (EXIF) as RGB, uint8 `[H, W, 3]`.

    Transparency is dropped, as training loaders do; 16-bit grey keeps its upper 8 bits; of
    several frames the first is taken.

    Raises:
        InputError: damaged, not one of the known formats, float pixels, or more pixels than
            Pillow's limit against decompression bombs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                return _to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(
            f"picture {path} has more than {Image.MAX_IMAGE_PIXELS} pixels",
            "scale it down or remove it",
        ) from error
    except Exception as error:  # Pillow's decoders fail in many ways on a damaged file
        unknown = isinstance(error, UnidentifiedImageError)
        why = f"not a {', '.join(_FORMATS)} file" if unknown else reason(error)
        raise InputError(
            f"picture {path} cannot be read ({why})", "replace or remove it"
        ) from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise ValueError("float pixels have no known range")
    if image.mode.startswith("I"):  # convert() would clip 16-bit values at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("32-bit pixels have no known range")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return np.array(image.convert("RGB"))


def _load_pictures(path: Path, labels: Path | None, limit: int | None) -> ImageSet:
    files = [path] if path.is_file() else _find_pictures(path)
    folder = path.parent if path.is_file() else path
    names = [file.relative_to(folder).as_posix() for file in files]
    values = None if labels is None else read_labels(labels, names)
    pictures = [read_picture(file) for file in files[:limit]]
    return _image_set(pictures, names, values, "directory")


def _load_npz(path: Path, labels: Path | None, limit: int | None) -> ImageSet:
    arrays = read_npz(path, ["images", "labels"])
    images = _check_array(arrays.get("images"), path)
    names = [f"{path.stem}-{i:05d}" for i in range(len(images))]
    values = None
    if labels is not None:
        values = read_labels(labels, names)
    elif "labels" in arrays:
        values = check_labels(arrays["labels"], len(names), str(path))
    images = images[:limit]
    if images.dtype == np.uint8:
        return _image_set(list(images), names, values, "npz")
    for name, image in zip(names, images, strict=False):
        if not np.isfinite(image).all():
            raise InputError(f"image {name} in {path} holds NaN or Inf", "repair or remove it")
    return _image_set(images, names, values, "npz")


def _find_pictures(folder: Path) -> list[Path]:
    """The pictures at any depth that are not hidden, sorted by their path."""
    files = [
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in PICTURE_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    ]
    if not files:
        raise InputError(
            f"folder {folder} holds no pictures",
            f"give a folder with files that end in {', '.join(PICTURE_SUFFIXES)}",
        )
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix())


def _check_array(images: np.ndarray | None, path: Path) -> np.ndarray:
    if images is None:
        raise InputError(f"{path} has no array `images`", "save the images with that name")
    raw = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3
    ready = images.dtype == np.float32 and images.ndim == 4 and images.shape[1] == 3
    if not (raw or ready):
        raise InputError(
            f"`images` in {path} is {images.dtype} {list(images.shape)}, "
            "neither pictures nor model inputs",
            "save uint8 [n, H, W, 3] RGB pictures, or preprocessed float32 [n, 3, H, W]",
        )
    if images.size == 0:
        raise InputError(f"`images` in {path} is empty {list(images.shape)}", "save some images")
    return images


def _image_set(
    arrays: list[np.ndarray] | np.ndarray,
    names: Sequence[str],
    labels: np.ndarray | None,
    source: Literal["directory", "npz", "synthetic"],
) -> ImageSet:
    """Completes an image set: checks shapes, hashes the content, cuts names and labels to fit."""
    names = tuple(names[: len(arrays)])
    digest = hashlib.sha256()
    for name, array in zip(names, arrays, strict=True):
        height, width = array.shape[:2] if isinstance(arrays, list) else array.shape[1:]
        # Resizing the shorter side up would take gigabytes for a picture of 1 x 100000.
        if max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
            raise InputError(
                f"picture {name} is {height}x{width}, too long and thin", "crop or remove it"
            )
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    labels = None if labels is None else labels[: len(arrays)]
    return ImageSet(arrays, names, labels, digest.hexdigest(), source)
