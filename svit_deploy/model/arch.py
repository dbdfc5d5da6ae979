"""What weights cannot tell about a model, as an architecture says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from svit_deploy.model.config import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class Arch:
    """An architecture. `None` or an empty tuple means: as the weights tell, or the default.

    Gates stand in front of the last blocks by default, and only the last gate may prune the class
    token. `image_size` is (height, width), `settings` are values of the settings that the family's
    backbone and method have, `task` of those that its task has. `known` names what somebody said:
    the user, a file, or a preset.
    """

    family: str
    num_heads: int
    embed_dim: int | None = None
    depth: int | None = None
    patch_size: int | None = None
    image_size: tuple[int, int] | None = None
    num_classes: int | None = None
    distilled: bool | None = None
    gate_blocks: tuple[int, ...] = ()
    gate_class_token: tuple[bool, ...] = ()
    target_keep: tuple[float, ...] = ()
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_ratio: float = 0.875
    interpolation: str = "bicubic"
    frames: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    known: frozenset[str] = field(default=frozenset(), compare=False)
