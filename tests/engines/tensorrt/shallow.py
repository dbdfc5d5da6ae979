"""Models of a few blocks with random weights: what a build costs grows with the layers.

Each has every kind of layer that its family writes, and nothing twice that can be had once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from svit_deploy.loading.layout import to_official
from svit_deploy.loading.random import random_weights
from svit_deploy.methods.families import FAMILIES
from svit_deploy.model.arch import Arch
from svit_deploy.model.model import Model
from svit_deploy.tasks import TASKS
from tests.told import build_told

TWO = {"interaction_blocks": (1, 2), "deform_heads": 3}
# Of each family its blocks and its settings, as an architecture file says them.
SHALLOW: dict[str, tuple[int, dict[str, Any]]] = {
    "svit": (3, {}),
    "deit": (2, {}),
    "lvvit": (2, {"skip_lam": 2.0}),
    "evit_lvvit": (
        2,
        {
            "skip_lam": 2.0,
            "keep_rate": 0.7,
            "fuse": True,
            "prune_blocks": (0, 1),
            "fused_in_max": False,
        },
    ),
    "mergence_lvvit": (2, {"skip_lam": 2.0, "keep_rate": 0.7, "prune_blocks": (0, 1)}),
    "tome_lvvit": (2, {"skip_lam": 2.0, "r": (13,)}),
    "dynamicvit": (4, {"base_rate": (0.7,)}),
    "dynamicvit_lvvit": (4, {"base_rate": (0.7,), "skip_lam": 2.0}),
    "evit": (2, {"keep_rate": 0.7, "fuse": True, "prune_blocks": (0, 1)}),
    "evovit": (3, {"prune_blocks": (1,), "prune_ratio": (0.5,)}),
    "ats": (2, {"ats_blocks": (0, 1)}),
    "avit": (3, {"gate_scale": 4.0, "gate_center": 3.0}),
    "tome": (2, {"r": (13,)}),
    "mergence": (2, {"keep_rate": 0.7, "prune_blocks": (0, 1)}),
    "multiscale": (3, {"keep_rate": 0.7, "prune_blocks": (2,), "cheap_blocks": 1}),
    "multiscale_lvvit": (
        3,
        {"skip_lam": 2.0, "keep_rate": 0.7, "prune_blocks": (2,), "cheap_blocks": 1},
    ),
    "stvit": (3, {"semantic": 16, "generate_at": 0}),
    "stvit_lvvit": (3, {"skip_lam": 2.0, "semantic": 16, "generate_at": 0}),
    "stvit_swin": (8, {"depths": (1, 1, 5, 1), "semantic": 36, "generate_at": 3}),
    "swin": (4, {"depths": (1, 1, 1, 1)}),
    "dynamicvit_swin": (7, {"depths": (1, 1, 4, 1), "base_rate": (0.7,)}),
    "convnext": (4, {"depths": (1, 1, 1, 1)}),
    "dynamicvit_convnext": (7, {"depths": (1, 1, 4, 1), "base_rate": (0.7,)}),
    "swin_pyramid": (5, {"depths": (2, 1, 1, 1)}),
    "stvitr_pyramid": (9, {"depths": (1, 1, 6, 1)}),
    "stvitr": (12, {"depths": (2, 2, 6, 2)}),
    "stvit_video": (
        7,
        {"depths": (1, 1, 4, 1), "window_size": (8, 7, 7), "semantic": 36, "generate_at": 3},
    ),
    "video_swin": (5, {"depths": (2, 1, 1, 1), "window_size": (8, 7, 7)}),
    "dynamicvit_adapter": (3, {**TWO, "base_rate": (0.8, 0.5), "prune_blocks": (1, 2)}),
    "evit_adapter": (3, {**TWO, "keep_rate": 0.7, "fuse": True, "prune_blocks": (0, 1)}),
    "ats_adapter": (3, {**TWO, "ats_blocks": (0, 1)}),
    "vit_window_adapter": (3, {**TWO, "windows": (3, 0, 5)}),
    "svit_adapter_variant": (
        3,
        {**TWO, "inherit_mask": True, "merge_gates": True, "fixed_ratio": (0.6, 0.3)},
    ),
    "evovit_adapter": (
        3,
        {
            **TWO,
            "prune_blocks": (1, 2),
            "prune_ratio": (0.5, 0.5),
        },
    ),
}
GATES = {"svit": (1, 2), "svit_adapter_variant": (0, 1)}  # the first block has none


def shallow_model(family: str, **sizes: Any) -> Model:
    """A family's model for its first task: 24 channels, 3 heads, 56 pixels.

    Args:
        sizes: other fields of `Arch`.
    """
    return _make(family, tuple(sorted(sizes.items())))


@cache
def _make(family: str, sizes: tuple[tuple[str, Any], ...]) -> Model:
    depth, settings = SHALLOW[family]
    swin = "depths" in settings
    known = {
        "num_heads": 3,
        "embed_dim": 24,
        "depth": depth,
        "patch_size": 4,
        "image_size": (224, 224) if swin else (56, 56),
        "num_classes": 5,
        "gate_blocks": GATES.get(family, ()),
        **dict(sizes),
    }
    found = FAMILIES[family]
    task = TASKS[found.backbone.tasks[0]]
    dims = found.dims_from_arch(Arch(family, settings=settings, **known))
    weights = random_weights(dims, task, np.random.default_rng(3))
    told = {"family": family, "num_heads": known["num_heads"], **settings}
    if found.backbone.frames:
        told |= {"frames": known["frames"], "image_size": "x".join(map(str, known["image_size"]))}
    if known["gate_blocks"]:
        told["gate_blocks"] = known["gate_blocks"]
    overrides = {name: _typed(value) for name, value in told.items()}
    official = to_official(weights, dims.family, task)
    return build_told(official, overrides, task.name)


def _typed(value: Any) -> str:
    """A setting as after `--set`."""
    if isinstance(value, tuple):
        return ",".join(map(_typed, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
