"""What defines a detection model, and the image sizes that one graph runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from svit_deploy.config import BatchRange, ModelConfig, parse_image_size
from svit_deploy.errors import InputError, UsageError
from svit_deploy.profiles import Profile

STRIDE = 32
"""Height and width must be multiples of it: the coarsest feature map has this stride."""
STRIDES = (4, 8, 16, 32)


class Task(str, Enum):
    """What a detection graph computes."""

    BACKBONE = "backbone"
    DETECT = "detect"


@dataclass(frozen=True)
class AdapterSettings:
    """What an adapter's weights cannot tell.

    Attributes:
        deform_heads: of the deformable attention.
        interaction_blocks: ViT blocks between each injector and its extractor; equal shares by
            default.
    """

    deform_heads: int = 6
    interaction_blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class AdapterConfig(ModelConfig):
    """A ViT-Adapter backbone, and the Mask R-CNN around it if `fpn_dim` is above 0.

    There is no class token: gates see and may prune every token. `image_size` is the typical
    size, which need not be the only one.

    Attributes:
        conv_dim: channels of the convolutional stem.
        deform_points: of the deformable attention, per head and level.
        deform_dim: channels of its values.
        ffn_dim: hidden channels of an extractor's feed-forward network.
        extra_extractors: further extractors after the last.
        resize: short and long side, in pixels, that pictures are scaled to fit.
        fpn_dim, fc_dim: channels of the feature pyramid and of the box head; 0 without heads.
        class_names: of the labels, if the checkpoint tells them.
        rpn_candidates: proposals per pyramid level before suppression.
        rpn_proposals: proposals per image after it.
        rpn_iou, box_iou: IoU above which the weaker of two boxes is suppressed.
        min_score: detections must be above it.
        max_detections: per image.
    """

    settings: AdapterSettings = field(default_factory=AdapterSettings)
    class_token: bool = False
    conv_dim: int = 64
    deform_points: int = 4
    deform_dim: int = 0
    ffn_dim: int = 0
    extra_extractors: int = 2
    resize: tuple[int, int] = (800, 1333)
    fpn_dim: int = 0
    fc_dim: int = 0
    class_names: tuple[str, ...] = ()
    rpn_candidates: int = 1000
    rpn_proposals: int = 1000
    rpn_iou: float = 0.7
    box_iou: float = 0.5
    min_score: float = 0.05
    max_detections: int = 100

    @property
    def deform_heads(self) -> int:
        return self.settings.deform_heads

    @property
    def interaction_blocks(self) -> tuple[int, ...]:
        return self.settings.interaction_blocks

    @property
    def has_heads(self) -> bool:
        return self.fpn_dim > 0

    def tokens_of(self, size: tuple[int, int]) -> int:
        """Tokens of an image of (height, width)."""
        return (size[0] // self.patch_size) * (size[1] // self.patch_size)


@dataclass(frozen=True)
class SizeRange:
    """Smallest, typical and largest image, (height, width), that a graph must run."""

    min: tuple[int, int]
    opt: tuple[int, int]
    max: tuple[int, int]

    @classmethod
    def parse(cls, text: str) -> SizeRange:
        """Reads `800x1216`, or `64x64:800x1216:1344x1344`.

        Raises:
            UsageError: not one or three sizes, not multiples of 32, or out of order.
        """
        parts = text.split(":")
        if len(parts) not in (1, 3):
            raise UsageError(
                f"--image-size {text!r} is not a size or a range",
                "give HEIGHTxWIDTH or MIN:OPT:MAX, for example 64x64:800x1216:1344x1344",
            )
        low, opt, high = (parse_image_size(part) for part in (parts * 3)[:3])
        for size in (low, opt, high):
            if any(side % STRIDE for side in size):
                nearest = [max(STRIDE, round(side / STRIDE) * STRIDE) for side in size]
                raise UsageError(
                    f"image size {size[0]}x{size[1]} is not a multiple of {STRIDE}",
                    f"use, for example, {nearest[0]}x{nearest[1]}",
                )
        if not all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True)):
            raise UsageError(
                f"--image-size {text!r} is out of order", "give MIN:OPT:MAX, each side ascending"
            )
        return cls(low, opt, high)

    @property
    def fixed(self) -> bool:
        return self.min == self.max

    def check(self, size: tuple[int, int]) -> None:
        """Refuses an image that the graph cannot run.

        Raises:
            InputError: a side is no multiple of 32, or outside the range.
        """
        height, width = size
        if height % STRIDE or width % STRIDE:
            raise InputError(
                f"an input of {height}x{width} pixels is not a multiple of {STRIDE}",
                "pad it at the bottom and the right, as detection.preprocess does",
            )
        for side, low, high, name in zip(size, self.min, self.max, ("high", "wide"), strict=True):
            if not low <= side <= high:
                raise InputError(
                    f"an input of {height}x{width} pixels is {side} {name}, and the model was "
                    f"exported for {low} to {high}",
                    "export it with a wider --image-size MIN:OPT:MAX, or pad or scale the image",
                )

    def profile(self, batch: BatchRange) -> Profile:
        """The shapes of these sizes and batch sizes."""
        sizes = zip((batch.min, batch.opt, batch.max), (self.min, self.opt, self.max), strict=True)
        return Profile(*((images, 3, *size) for images, size in sizes))

    def check_profiles(self, profiles: Sequence[Profile]) -> None:
        """Raises UsageError for a shape whose image size the graph does not run."""
        for profile in profiles:
            for shape in (profile.min, profile.opt, profile.max):
                try:
                    self.check(shape[2:])
                except InputError as error:
                    raise UsageError(f"the profile {profile}: {error.message}", error.fix) from None

    def __str__(self) -> str:
        sizes = [f"{height}x{width}" for height, width in (self.min, self.opt, self.max)]
        return sizes[0] if self.fixed else ":".join(sizes)


DEFAULT_SIZES = SizeRange((64, 64), (800, 1216), (1344, 1344))
"""Every size that the official test pipeline makes of pictures up to 1 : 20, and smaller inputs."""


def parse_task(text: str) -> Task:
    """`backbone` or `detect`; raises UsageError."""
    if not re.fullmatch("backbone|detect", text):
        raise UsageError(f"--task {text!r} is unknown", "use classify, backbone or detect")
    return Task(text)
