"""A small model of every family, with random weights: 24 channels, 3 heads, 4 blocks."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from svit_deploy.backbones.adapter import AdapterDims
from svit_deploy.loading.layout import to_official
from svit_deploy.loading.random import random_weights
from svit_deploy.methods.families import FAMILIES
from svit_deploy.model.arch import Arch
from svit_deploy.model.assumption import typed
from svit_deploy.model.config import TokenMode
from svit_deploy.model.model import Model
from svit_deploy.tasks import TASKS
from svit_deploy.tasks.detect.keys import HeadDims
from svit_deploy.tasks.numbers import DetectorNumbers
from tests.told import build_told

SHORT = {"interaction_blocks": (2, 2)}
SETTINGS: dict[str, dict[str, Any]] = {
    "dynamicvit": {"base_rate": (0.7,)},
    "dynamicvit_lvvit": {"base_rate": (0.7,), "skip_lam": 2.0},
    "lvvit": {"skip_lam": 2.0},
    "evit_lvvit": {
        "skip_lam": 2.0,
        "keep_rate": 0.7,
        "fuse": True,
        "prune_blocks": (1, 2),
        "before_mlp": False,
        "fused_in_max": False,
    },
    "mergence_lvvit": {"skip_lam": 2.0, "keep_rate": 0.7, "prune_blocks": (1, 2)},
    "tome_lvvit": {"skip_lam": 2.0, "r": (13,)},
    "evit": {"keep_rate": 0.7, "fuse": True, "prune_blocks": (1, 2)},
    "evovit": {"prune_blocks": (1, 2)},
    "ats": {"ats_blocks": (1, 2)},
    "avit": {"gate_scale": 4.0, "gate_center": 3.0},
    "tome": {"r": (13,)},
    "mergence": {"keep_rate": 0.7, "prune_blocks": (1, 2)},
    "multiscale": {"keep_rate": 0.7, "prune_blocks": (2, 3), "cheap_blocks": 1},
    "multiscale_lvvit": {
        "skip_lam": 2.0,
        "keep_rate": 0.7,
        "prune_blocks": (2, 3),
        "cheap_blocks": 1,
        "mean_of_normed": False,
    },
    "stvit": {"semantic": 16, "generate_at": 1},
    "stvit_lvvit": {"skip_lam": 2.0, "semantic": 16, "generate_at": 1},
    "stvit_swin": {"depths": (1, 1, 5, 1), "semantic": 36, "generate_at": 3},
    "swin": {"depths": (2, 1, 1, 1)},
    "dynamicvit_swin": {"depths": (1, 1, 4, 1), "base_rate": (0.7,)},
    "convnext": {"depths": (1, 2, 1, 1)},
    "dynamicvit_convnext": {"depths": (1, 1, 4, 1), "base_rate": (0.7,)},
    "stvit_video": {
        "depths": (1, 1, 4, 1),
        "window_size": (2, 7, 7),
        "semantic": 36,
        "generate_at": 3,
    },
    "video_swin": {"depths": (2, 1, 1, 1), "window_size": (2, 3, 3)},
    "swin_pyramid": {"depths": (2, 1, 2, 1)},
    "stvitr_pyramid": {"depths": (2, 1, 6, 1)},
    "stvitr": {"depths": (2, 1, 6, 1)},
    "svit_adapter": SHORT,
    "svit_variant": {"inherit_mask": True, "merge_gates": True},
    "svit_adapter_variant": {
        **SHORT,
        "inherit_mask": True,
        "merge_gates": True,
        "fixed_ratio": (0.7, 0.4),
    },
    "vit_adapter": SHORT,
    "vit_window_adapter": {**SHORT, "windows": (3, 0, 5, 0)},
    "vit_adapter_class": SHORT,
    "dynamicvit_adapter": {**SHORT, "base_rate": (0.8, 0.5), "prune_blocks": (1, 2)},
    "evit_adapter": {**SHORT, "keep_rate": 0.7, "fuse": True, "prune_blocks": (1, 2)},
    "ats_adapter": {**SHORT, "ats_blocks": (1, 2)},
    "evovit_adapter": {**SHORT, "prune_blocks": (2, 3), "prune_ratio": (0.5, 0.5)},
}
"""What a family's weights cannot tell, and places in 4 blocks; its defaults in 12 without a row."""
SIZES = {"swin": (224, 4), "stvitr": (224, 4), "dynamicvit_swin": (64, 2)}
SIZES |= {"convnext": (64, 4), "dynamicvit_convnext": (128, 4)}
GATES = {"svit_variant": (1, 3), "svit_adapter_variant": (1, 3)}
SIZES |= {"stvit_swin": (224, 4), "swin_pyramid": (224, 4), "stvitr_pyramid": (224, 4)}
SIZES |= {"video_swin": (24, 4), "stvit_video": (224, 4)}
FRAMES = {"video_swin": "6", "stvit_video": "4"}


OWN_DENSE = {"evovit", "multiscale", "multiscale_lvvit"}
"""Methods that leave something behind without their choice of tokens: a token's head, features."""


def has_own_dense(family: str) -> bool:
    """Whether a family's dense graph is none that another family has."""
    return FAMILIES[family].modes == (TokenMode.DENSE,) or family in OWN_DENSE


@cache
def small_model(family: str, task: str) -> Model:
    """The model, its weights drawn anew of the same seed."""
    found, wanted = FAMILIES[family], TASKS[task]
    size, patch = SIZES.get(family, (56, 4))
    settings = SETTINGS.get(family, {})
    blocks = 4 if settings or found.settings is None else 12
    arch = Arch(
        family,
        3,
        24,
        sum(settings.get("depths", (blocks,))),
        patch,
        (size, size),
        num_classes=5,
        gate_blocks=GATES.get(family, ()),
        settings=settings,
    )
    dims = wanted.heads_from_arch(found.dims_from_arch(arch), arch)
    if isinstance(dims, AdapterDims):
        dims = replace(dims, conv_dim=8, deform_dim=24, samples=24)
    dims = replace(dims, heads=HeadDims(8, 16)) if dims.heads else dims
    weights = random_weights(dims, wanted, np.random.default_rng(5))
    for name in weights:
        if name.startswith("roi_head.bbox_head.") and ".fc_" in name and name.endswith("weight"):
            weights[name] *= 0.05  # trained ones do not turn rounding into scores, either
    told = {"family": family, "num_heads": "3"}
    told |= {name: typed(value) for name, value in settings.items()}
    if family in FRAMES:
        told |= {"frames": FRAMES[family], "image_size": str(size), "crops": "1"}
    if family in GATES:
        told["gate_blocks"] = typed(GATES[family])
    model = build_told(to_official(weights, dims.family, wanted), told, task)
    if isinstance(model.config.task, DetectorNumbers):
        numbers = replace(model.config.task, rpn_candidates=200, rpn_proposals=200)
        model = replace(model, config=replace(model.config, task=numbers))
    if found.method.trained_gates:  # half of the tokens of each gate
        config = replace(model.config, thresholds=(0.0,) * model.config.num_gates)
        model = replace(model, config=config)
    return model
