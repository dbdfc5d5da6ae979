"""Image sets as a task's models get them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from svit_deploy.errors import InputError
from svit_deploy.images import ImageSet
from svit_deploy.images.prepared import Prepared
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.sizes import SizeRange
from svit_deploy.tasks.task import Task


def prepare_all(
    images: ImageSet, task: Task, config: ModelConfig, sizes: SizeRange
) -> Iterator[Prepared]:
    """Every image in turn, with its name and label; those already preprocessed as they are.

    Raises:
        InputError: a size that the graph cannot run, or a label that is none of its classes.
    """
    if images.labels is not None and images.labels.max(initial=-1) >= config.num_classes > 0:
        raise InputError(
            f"label {images.labels.max()} is none of the model's {config.num_classes} classes",
            "give labels that count from 0",
        )
    labels = [None] * len(images) if images.labels is None else images.labels.tolist()
    for array, name, label in zip(images.arrays, images.names, labels, strict=True):
        if isinstance(images.arrays, list):
            image = task.prepare(array, config, sizes)
            yield dataclasses.replace(image, name=name, label=label)
            continue
        size = array.shape[1:]
        if sizes.fixed and size != sizes.opt:
            raise InputError(
                f"the preprocessed images are {size[0]}x{size[1]}, the model expects "
                f"{sizes.opt[0]}x{sizes.opt[1]}",
                "preprocess them to that size, or give raw pictures as uint8 [n, H, W, 3]",
            )
        sizes.check((size[0], size[1]))
        yield Prepared.whole(array, name, label)
