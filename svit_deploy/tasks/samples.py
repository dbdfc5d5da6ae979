"""Images as a task's models get them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from svit_deploy.errors import InputError
from svit_deploy.images import Images
from svit_deploy.images.prepared import Prepared
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.sizes import SizeRange
from svit_deploy.tasks.task import Task


def prepare_all(
    images: Images, task: Task, config: ModelConfig, sizes: SizeRange
) -> Iterator[Prepared]:
    """Every image in turn, with its name and label; those already preprocessed as they are.

    Each is read when it is its turn: large ones do not all fit into memory.

    Raises:
        InputError: an image that cannot be read, a size that the graph cannot run, or a label that
            is none of its classes.
    """
    check_labels_fit(images.labels, config)
    labels = [None] * len(images) if images.labels is None else images.labels.tolist()
    for load, name, label in zip(images.loaders(), images.names, labels, strict=True):
        yield prepare(load(), name, label, task, config, sizes)


def prepare(
    array: np.ndarray,
    name: str,
    label: int | None,
    task: Task,
    config: ModelConfig,
    sizes: SizeRange,
) -> Prepared:
    """One image: what the task's reader gives, uint8, or one already preprocessed as it is.

    Raises:
        InputError: a size that the graph cannot run.
    """
    if array.dtype == np.uint8:
        image = task.prepare(array, config, sizes)
        return dataclasses.replace(image, name=name, label=label)
    size = array.shape[-2:]
    if sizes.fixed and size != sizes.opt:
        raise InputError(
            f"the preprocessed images are {size[0]}x{size[1]}, the model expects "
            f"{sizes.opt[0]}x{sizes.opt[1]}",
            "preprocess them to that size, or give raw pictures as uint8 [n, H, W, 3]",
        )
    sizes.check((size[0], size[1]))
    wanted = sizes.shape((size[0], size[1]))
    if array.shape[-len(wanted) :] != wanted:
        raise InputError(
            f"the preprocessed {task.medium.noun}s have the shape {list(array.shape)}, the model "
            f"expects {list(wanted)}",
            "preprocess them to that shape",
        )
    return Prepared.whole(array, name, label)


def check_labels_fit(labels: np.ndarray | None, config: ModelConfig) -> None:
    """Raises InputError for a label that is none of the model's classes."""
    if labels is not None and labels.max(initial=-1) >= config.num_classes > 0:
        raise InputError(
            f"label {labels.max()} is none of the model's {config.num_classes} classes",
            "give labels that count from 0",
        )
