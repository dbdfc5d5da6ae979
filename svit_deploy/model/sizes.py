"""The image sizes that one graph runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from svit_deploy.errors import InputError, UsageError
from svit_deploy.model.config import BatchRange, input_shape, parse_image_size
from svit_deploy.model.profiles import Profile

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class Misfit:
    """Why a model cannot run an image size, and the nearest one that it can."""

    reason: str
    nearest: Size


def nearest_multiple(size: Size, step: int) -> Size:
    height, width = (max(round(side / step), 1) * step for side in size)
    return height, width


@dataclass(frozen=True)
class SizeRange:
    """Smallest, typical and largest image, (height, width), that a graph must run.

    Attributes:
        step: what both sides must be multiples of.
        frames: of a clip; 0 of a picture.
    """

    min: Size
    opt: Size
    max: Size
    step: int = 1
    frames: int = 0

    @classmethod
    def single(cls, size: Size, step: int = 1, frames: int = 0) -> SizeRange:
        return cls(size, size, size, step, frames)

    @classmethod
    def parse(cls, text: str, step: int = 1) -> SizeRange:
        """Reads `800x1216`, or `64x64:800x1216:1344x1344`.

        Raises:
            UsageError: not one or three sizes, not multiples of the step, or out of order.
        """
        parts = text.split(":")
        if len(parts) not in (1, 3):
            raise UsageError(
                f"--image-size {text!r} is not a size or a range",
                "give HEIGHTxWIDTH or MIN:OPT:MAX, for example 64x64:800x1216:1344x1344",
            )
        low, opt, high = (parse_image_size(part) for part in (parts * 3)[:3])
        for size in (low, opt, high):
            if (nearest := nearest_multiple(size, step)) != size:
                raise UsageError(
                    f"image size {size[0]}x{size[1]} is not a multiple of {step}",
                    f"use, for example, {nearest[0]}x{nearest[1]}",
                )
        if not all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True)):
            raise UsageError(
                f"--image-size {text!r} is out of order", "give MIN:OPT:MAX, each side ascending"
            )
        return cls(low, opt, high, step)

    @property
    def fixed(self) -> bool:
        return self.min == self.max

    def corners(self) -> list[Size]:
        """The extreme sizes: smallest, largest, lowest at its widest, narrowest at its highest."""
        heights, widths = ((self.min[axis], self.max[axis]) for axis in (0, 1))
        return sorted(set(itertools.product(heights, widths)))

    def nearest(self, size: Size) -> Size:
        """The size that the graph runs, itself if it does."""
        height, width = (
            min(max(side, low), high)
            for side, low, high in zip(
                nearest_multiple(size, self.step), self.min, self.max, strict=True
            )
        )
        return height, width

    def check(self, size: Size) -> None:
        """Refuses an image that the graph cannot run.

        Raises:
            InputError: a side is no multiple of the step, or outside the range.
        """
        height, width = size
        if height % self.step or width % self.step:
            raise InputError(
                f"an input of {height}x{width} pixels is not a multiple of {self.step}",
                "pad it at the bottom and the right, as the model's preprocessing does",
            )
        for side, low, high, name in zip(size, self.min, self.max, ("high", "wide"), strict=True):
            if not low <= side <= high:
                raise InputError(
                    f"an input of {height}x{width} pixels is {side} {name}, and the model was "
                    f"exported for {low} to {high}",
                    "export it with a wider --image-size MIN:OPT:MAX, or pad or scale the image",
                )

    def shape(self, size: Size) -> tuple[int, ...]:
        """Of an image of a size in the graph's input, without the batch."""
        return input_shape(size, self.frames)

    def profile(self, batch: BatchRange) -> Profile:
        """The shapes of these sizes and batch sizes."""
        sizes = zip((batch.min, batch.opt, batch.max), (self.min, self.opt, self.max), strict=True)
        return Profile(*((images, *self.shape(size)) for images, size in sizes))

    def check_profiles(self, profiles: Sequence[Profile]) -> None:
        """Raises UsageError for a shape whose image size the graph does not run."""
        for profile in profiles:
            for shape in (profile.min, profile.opt, profile.max):
                wanted = self.shape((shape[-2], shape[-1]))
                if (self.fixed and shape[-2:] != self.opt) or shape[1:] != wanted:
                    height, width = self.opt
                    sides = "x".join(map(str, self.shape(self.opt)))
                    raise UsageError(
                        f"the profile {profile} has another image size than the model's "
                        f"{height}x{width}, for which its positions are computed",
                        f"give {sides} in all shapes, or export with another --image-size",
                    )
                try:
                    self.check((shape[-2], shape[-1]))
                except InputError as error:
                    raise UsageError(f"the profile {profile}: {error.message}", error.fix) from None

    def __str__(self) -> str:
        sizes = [f"{height}x{width}" for height, width in (self.min, self.opt, self.max)]
        return sizes[0] if self.fixed else ":".join(sizes)
