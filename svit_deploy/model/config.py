"""Frozen settings passed between layers, and the parsers of their command-line forms."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from svit_deploy.errors import InputError, UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_BATCH, MAX_IMAGE_SIZE = 65536, 4096
MOST = {
    "embed_dim": 2**16,
    "depth": 1024,
    "num_heads": 2**12,
    "mlp_dim": 2**18,
    "patch_size": MAX_IMAGE_SIZE,
    "num_classes": 2**20,
    "frames": 1024,
}
"""Far beyond any model: a file that says more would only take time and memory."""


class TokenMode(str, Enum):
    """How an exported graph runs only the kept tokens (docs/architecture.md)."""

    DYNAMIC = "dynamic"
    BUDGET = "budget"
    MASKED = "masked"
    DENSE = "dense"
    STATIC = "static"


@dataclass(frozen=True)
class Preprocess:
    """From an RGB picture to the graph's input `[B, 3, H, W]`, float32.

    The shorter side is resized to `image size / crop_ratio`, the centre is cropped, values are
    divided by 255, then `(x - mean) / std` per channel, in R, G, B order.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_ratio: float = 0.875
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3:
                raise InputError(
                    f"{name} has {len(getattr(self, name))} values",
                    f"give three, for the channels R, G, B: --set {name}=0.5,0.5,0.5",
                )
        # Of values in [0, 1]; who trained on 0..255 has numbers that are 255 times as large.
        if not all(-1 <= value <= 2 for value in self.mean):
            raise InputError(f"mean {self.mean} is not of values from 0 to 1", "divide it by 255")
        if min(self.std) <= 0:
            raise InputError(f"std {self.std} is not positive", "give three positive numbers")
        if max(self.std) > 10 or min(self.std) < 1e-3:
            raise InputError(f"std {self.std} is not of values from 0 to 1", "divide it by 255")
        if not 0 < self.crop_ratio <= 1:
            raise InputError(
                f"crop_ratio {self.crop_ratio} is outside (0, 1]",
                "use 0.875 for ImageNet models, 1.0 for no crop",
            )
        if self.interpolation not in ("nearest", "bilinear", "bicubic"):
            raise InputError(
                f"interpolation {self.interpolation!r} is unknown",
                "use nearest, bilinear or bicubic",
            )


@dataclass(frozen=True)
class ModelConfig:
    """Everything that defines a model's forward pass beside its weights.

    Blocks and gates are counted from 0. `gate_blocks[g]` is the block that gate `g` stands in
    front of. `gate_class_token[g]` says whether gate `g` may prune the class token (SViT's
    "version 0") or always keeps it ("version 1"). `thresholds[g]` is the margin above which a
    token is kept. `image_size` is the (typical) size; a task may run others.

    Three parts belong to one axis each, frozen dataclasses or None: `settings` are what weights
    cannot tell of a backbone and a method, `backbone` the sizes that only that backbone has,
    `task` the numbers of a task.

    Of a backbone in stages, each of which halves the map, `gate_stage` is the one whose tokens the
    gates decide on. Of a backbone of videos, `frames` is how many a clip has; of others 0.
    """

    family: str
    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    patch_size: int
    num_classes: int
    image_size: tuple[int, int]
    native_grid: tuple[int, int]
    distilled: bool = False
    gate_blocks: tuple[int, ...] = ()
    gate_class_token: tuple[bool, ...] = ()
    target_keep: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()
    block_eps: float = 1e-6
    gate_eps: float = 1e-5
    norm_eps: float = 1e-6
    preprocess: Preprocess = field(default_factory=Preprocess)
    settings: Any = None
    class_token: bool = True
    backbone: Any = None
    task: Any = None
    gate_stage: int = 0
    frames: int = 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one image in the graph's input: `(3, H, W)`, or `(3, T, H, W)` of a clip."""
        return input_shape(self.image_size, self.frames)

    @property
    def token_size(self) -> int:
        """Pixels along the side of a token that gates decide on."""
        return self.patch_size << self.gate_stage

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens per column and per row at `image_size`: patches, or what a stage made of them."""
        return self.image_size[0] // self.token_size, self.image_size[1] // self.token_size

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: the class token, and the distillation token if any."""
        return self.class_token + self.distilled

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        """S: prefix tokens + patches."""
        return self.prefix_tokens + self.num_patches

    @property
    def gate_of(self) -> dict[int, int]:
        """The gate of each block that has one."""
        return {block: gate for gate, block in enumerate(self.gate_blocks)}

    @property
    def num_gates(self) -> int:
        return len(self.gate_blocks)

    def at(self, size: tuple[int, int]) -> ModelConfig:
        """The same model on images of another (height, width) in pixels."""
        return replace(self, image_size=size)

    def first_gated(self, gate: int) -> int:
        """The first token that a gate decides on: those before it are always kept."""
        return 0 if self.gate_class_token[gate] else self.prefix_tokens

    def gated_tokens(self, gate: int) -> int:
        """How many tokens gate `gate` decides on: the keep ratio's denominator."""
        return self.num_tokens - self.first_gated(gate)


def input_shape(size: tuple[int, int], frames: int) -> tuple[int, ...]:
    """The shape of an image of a (height, width), or of a clip of so many frames."""
    return (3, frames, *size) if frames else (3, *size)


@dataclass(frozen=True)
class BatchRange:
    """Smallest, typical and largest batch a graph must run."""

    min: int
    opt: int
    max: int

    @classmethod
    def parse(cls, text: str) -> BatchRange:
        """Reads `8` or `1:8:32`.

        Raises:
            UsageError: not one or three whole numbers, below 1, or out of order.
        """
        fix = "give one number or MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX, for example 1:8:32"
        parts = text.split(":")
        if len(parts) not in (1, 3) or not all(map(_is_number, parts)):
            raise UsageError(f"--batch {text!r} is not a batch range", fix)
        low, opt, high = (int(part) for part in (parts * 3 if len(parts) == 1 else parts))
        if not 1 <= low <= opt <= high:
            raise UsageError(f"--batch {text!r} is out of order or below 1", fix)
        if high > MAX_BATCH:
            raise UsageError(f"--batch {text!r} is above {MAX_BATCH}", fix)
        return cls(low, opt, high)

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


def parse_image_size(text: str) -> tuple[int, int]:
    """Reads `224` or `224x320` (height x width) into `(height, width)` in pixels.

    Raises:
        UsageError: anything else; the fix is the size that was meant, if that can be told.
    """
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(map(_is_number, parts)):
        meant = re.fullmatch(r"[^0-9]*([0-9]{1,4})(?:[^0-9.e]+([0-9]{1,4}))?[^0-9]*", text)
        sizes = "x".join(filter(None, meant.groups())) if meant else "224 or 224x320"
        raise UsageError(
            f"--image-size {text!r} is not a size", f"give pixels, for example {sizes}"
        )
    height, width = (int(part) for part in (parts * 2 if len(parts) == 1 else parts))
    if not 1 <= min(height, width) <= max(height, width) <= MAX_IMAGE_SIZE:
        raise UsageError(
            f"--image-size {text!r} is outside 1 to {MAX_IMAGE_SIZE}",
            "give pixels, for example 224",
        )
    return height, width


def _is_number(text: str) -> bool:
    """Whether it is a whole number of a sensible length."""
    return re.fullmatch(r"\s*[0-9]{1,18}\s*", text) is not None


def parse_ratios(text: str, option: str) -> tuple[float, ...]:
    """Reads `0.7,0.49,0.343`: keep ratios, each above 0 and at most 1.

    Raises:
        UsageError: not numbers, or outside (0, 1].
    """
    try:
        ratios = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} {text!r} is not a list of numbers", "give, for example, 0.7,0.49,0.343"
        ) from None
    check_ratios(ratios, option)
    return ratios


def check_ratios(ratios: tuple[float, ...], option: str) -> None:
    """Raises UsageError unless each keep ratio is above 0 and at most 1."""
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise UsageError(
                f"{option} has a keep ratio of {ratio:g}",
                "give ratios above 0 and at most 1, for example 0.7,0.49,0.343",
            )


def spread_over_gates(values: tuple[Any, ...], num_gates: int, option: str) -> tuple[Any, ...]:
    """Repeats stage values over gates: 3 values for 9 gates give three gates each.

    Raises:
        UsageError: the number of gates is not a multiple of the number of values.
    """
    if not values or num_gates % len(values):
        raise UsageError(
            f"{option} has {len(values)} values for a model with {num_gates} gates",
            f"give 1 value, {num_gates} values, or a divisor of {num_gates}",
        )
    repeat = num_gates // len(values)
    return tuple(value for value in values for _ in range(repeat))
