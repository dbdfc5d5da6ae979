"""Painted pictures as a task's models get them, where none are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from svit_deploy.images import ImageSet, join_images, synthetic_images
from svit_deploy.images.prepared import Prepared
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.sizes import Size, SizeRange

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
