"""A model ready to run or export: its configuration and its weights under canonical names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from svit_deploy.io.checkpoint import Checkpoint
from svit_deploy.model.assumption import Assumption
from svit_deploy.model.config import ModelConfig

CUSTOM = "custom"
"""`Model.arch` of a model that only its weights and single settings describe."""


@dataclass(frozen=True)
class Model:
    """A model ready to run or export.

    Attributes:
        config: all that its forward pass needs beside the weights.
        weights: canonical names (see `model.keys`) to float32 arrays; `pos_embed` has the
            native grid's rows, whatever the image size.
        arch: a preset's name, an architecture file's name, or `CUSTOM`.
        checkpoint: the file it came from, if any.
        notes: what was changed, for the user to read.
        assumptions: what nobody told, in the order of the settings.
        candidates: families that run on such weights, if nothing tells which it is.
    """

    config: ModelConfig
    weights: dict[str, np.ndarray]
    arch: str
    checkpoint: Checkpoint | None = None
    notes: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    assumptions: tuple[Assumption, ...] = ()


def without_gates(model: Model) -> Model:
    """The dense twin: the same weights, every block on every token."""
    none: dict[str, Any] = dict.fromkeys(
        ("gate_blocks", "gate_class_token", "target_keep", "thresholds"), ()
    )
    config = replace(model.config, **none, gate_stage=0)
    assumptions = tuple(one for one in model.assumptions if not one.selects)
    return replace(model, config=config, assumptions=assumptions)
