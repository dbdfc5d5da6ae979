"""Input shapes that an engine is built for: optimisation profiles and their spellings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from svit_deploy.errors import UsageError
from svit_deploy.model.config import MAX_BATCH, MAX_IMAGE_SIZE, MOST, BatchRange
from svit_deploy.names import INPUT

Shape = tuple[int, ...]
"""`(B, 3, H, W)` of pictures, `(B, 3, T, H, W)` of clips."""


@dataclass(frozen=True)
class Profile:
    """Smallest, typical and largest shape of the image input."""

    min: Shape
    opt: Shape
    max: Shape

    def covers(self, shape: Sequence[int]) -> bool:
        """Whether the profile serves this shape."""
        if len(shape) != len(self.opt):
            return False
        sizes = zip(self.min, shape, self.max, strict=True)
        return all(low <= size <= high for low, size, high in sizes)

    def __str__(self) -> str:
        return " to ".join("x".join(map(str, shape)) for shape in (self.min, self.max))


def choose_profile(profiles: Sequence[Profile], shape: Sequence[int]) -> int | None:
    """The profile that serves a shape best: of those that cover it, the one of nearest `opt`."""

    def distance(profile: Profile) -> int:
        return sum(abs(size - opt) for size, opt in zip(shape, profile.opt, strict=True))

    fitting = [number for number, profile in enumerate(profiles) if profile.covers(shape)]
    return min(fitting, key=lambda number: distance(profiles[number]), default=None)


def parse_batches(text: str) -> tuple[BatchRange, ...]:
    """Reads `1:8:32`, or batch buckets such as `1,2:8:8,9:32:32`.

    Raises:
        UsageError: see `BatchRange.parse`.
    """
    return tuple(BatchRange.parse(part) for part in text.split(","))


def whole_range(batches: Sequence[BatchRange]) -> BatchRange:
    """From the smallest to the largest of some ranges."""
    return BatchRange(
        min(batch.min for batch in batches), batches[0].opt, max(batch.max for batch in batches)
    )


def shape_profiles(
    low: Sequence[str], typical: Sequence[str], high: Sequence[str]
) -> tuple[Profile, ...]:
    """Reads trtexec's `images:1x3x224x224`, one text of each kind for each profile.

    Raises:
        UsageError: malformed, another input, different numbers of them, or out of order.
    """
    if not len(low) == len(typical) == len(high):
        raise UsageError(
            f"{len(low)} --min-shapes, {len(typical)} --opt-shapes and {len(high)} --max-shapes "
            "do not make profiles",
            "give the three options equally often, once for each profile",
        )
    profiles = []
    for texts in zip(low, typical, high, strict=True):
        options = ("--min-shapes", "--opt-shapes", "--max-shapes")
        profile = Profile(
            *(parse_shape(text, name) for text, name in zip(texts, options, strict=True))
        )
        sizes = zip(profile.min, profile.opt, profile.max, strict=False)
        ranks = {len(profile.min), len(profile.opt), len(profile.max)}
        if len(ranks) > 1 or not all(a <= b <= c for a, b, c in sizes):
            raise UsageError(
                f"the shapes {', '.join(texts)} are out of order",
                "give sizes with MIN <= OPT <= MAX in every dimension",
            )
        profiles.append(profile)
    return tuple(profiles)


def parse_shape(text: str, option: str) -> Shape:
    """Reads `images:1x3x224x224`, or `images:1x3x32x224x224` of clips.

    Raises:
        UsageError: another input, not four sizes or five, three channels missing, or a size out
            of range.
    """
    fix = f"write, e.g., {option} {INPUT}:1x3x224x224"
    name, colon, sizes = text.strip().rpartition(":")
    if colon and name != INPUT:
        raise UsageError(f"{option} names an input {name!r}, the model's is {INPUT!r}", fix)
    if not re.fullmatch(r"[0-9]{1,9}(x[0-9]{1,9}){3,4}", sizes):
        raise UsageError(f"{option} {text!r} is not a shape of four sizes", fix)
    batch, channels, *frames, height, width = (int(size) for size in sizes.split("x"))
    if channels != 3:
        raise UsageError(f"{option} {text!r} has {channels} channels, the model takes 3", fix)
    if not (
        1 <= batch <= MAX_BATCH
        and 1 <= min(*frames, height, width) <= max(height, width) <= MAX_IMAGE_SIZE
        and max(frames, default=0) <= MOST["frames"]
    ):
        raise UsageError(
            f"{option} {text!r} is out of range: a batch goes from 1 to {MAX_BATCH}, an image "
            f"from 1 to {MAX_IMAGE_SIZE} pixels",
            fix,
        )
    return batch, channels, *frames, height, width
