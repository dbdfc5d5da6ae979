"""Image sets as a task's models get them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

import numpy as np

from svit_deploy.errors import InputError
from svit_deploy.images import ImageSet, join_images, synthetic_images
from svit_deploy.images.prepared import Prepared
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.sizes import Size, SizeRange
from svit_deploy.tasks.task import Task

RESIZED = 1.25, 0.8
"""Input pixels per pixel of the picture that a painted one stands for, for x and y."""


def paint(
    config: ModelConfig, sizes: SizeRange, typical: int, seen: Collection[Size] = ()
) -> tuple[list[Prepared], ImageSet]:
    """Painted pictures: some of the typical size, and one of each extreme size beside those seen.

    Positions or samples may be right at one size alone. Where the graph runs several, each stands
    for a picture that was resized: boxes that are not scaled back differ.
    """
    corners = [size for size in sizes.corners() if size not in seen]
    sets = [synthetic_images(typical, sizes.opt)] if typical else []
    sets += [synthetic_images(1, size) for size in corners]
    names = [f"synthetic-{i:05d}" for i in range(typical)]
    names += [f"synthetic-{height}x{width}" for height, width in corners]
    places = [sizes.opt] * typical + corners
    images = join_images(sets, names)
    inputs = [images[i : i + 1].inputs(config.preprocess, size)[0] for i, size in enumerate(places)]
    prepared = [Prepared.whole(p, n) for p, n in zip(inputs, names, strict=True)]
    return prepared if sizes.fixed else [_resized(image) for image in prepared], images


def _resized(image: Prepared) -> Prepared:
    """The image as one that was narrower and higher."""
    (height, width), (x, y) = image.size, RESIZED
    original = round(height / y), round(width / x)
    return dataclasses.replace(image, scale=(x, y, x, y), original_size=original)


def prepare_all(
    images: ImageSet, task: Task, config: ModelConfig, sizes: SizeRange
) -> Iterator[Prepared]:
    """Every image in turn, with its name and label; those already preprocessed as they are.

    Raises:
        InputError: a size that the graph cannot run, or a label that is none of its classes.
    """
    check_labels_fit(images.labels, config)
    labels = [None] * len(images) if images.labels is None else images.labels.tolist()
    for array, name, label in zip(images.arrays, images.names, labels, strict=True):
        yield prepare(array, name, label, task, config, sizes)


def prepare(
    array: np.ndarray,
    name: str,
    label: int | None,
    task: Task,
    config: ModelConfig,
    sizes: SizeRange,
) -> Prepared:
    """One image: an RGB picture uint8 `[h, w, 3]`, or one already preprocessed as it is.

    Raises:
        InputError: a size that the graph cannot run.
    """
    if array.dtype == np.uint8:
        image = task.prepare(array, config, sizes)
        return dataclasses.replace(image, name=name, label=label)
    size = array.shape[1:]
    if sizes.fixed and size != sizes.opt:
        raise InputError(
            f"the preprocessed images are {size[0]}x{size[1]}, the model expects "
            f"{sizes.opt[0]}x{sizes.opt[1]}",
            "preprocess them to that size, or give raw pictures as uint8 [n, H, W, 3]",
        )
    sizes.check((size[0], size[1]))
    return Prepared.whole(array, name, label)


def check_labels_fit(labels: np.ndarray | None, config: ModelConfig) -> None:
    """Raises InputError for a label that is none of the model's classes."""
    if labels is not None and labels.max(initial=-1) >= config.num_classes > 0:
        raise InputError(
            f"label {labels.max()} is none of the model's {config.num_classes} classes",
            "give labels that count from 0",
        )
