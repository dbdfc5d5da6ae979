"""The checkpoint that a bundle is verified against."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from svit_deploy.bundle import Bundle
from svit_deploy.loading.load import load_model
from svit_deploy.methods.families import family_of
from svit_deploy.model.assumption import typed
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.model import Model
from svit_deploy.tasks import Task

log = logging.getLogger(__name__)


def load_reference_model(
    bundle: Bundle,
    checkpoint: Path,
    *,
    arch: str | None = None,
    overrides: Mapping[str, str] | None = None,
    allow_pickle: bool = False,
    weights: str | None = None,
) -> Model:
    """Loads a checkpoint independently of the bundle, as far as the caller's settings reach.

    What weights cannot tell comes from `arch` and `overrides` if either is given. Otherwise the
    bundle's manifest is trusted for it, and a wrong head count there goes unnoticed.
    """
    if not arch and not overrides:
        overrides = settings_from_manifest(bundle.config, bundle.task)
    model = load_model(
        checkpoint,
        task=bundle.task.name,
        arch=arch,
        overrides=overrides,
        image_size=bundle.config.image_size,
        allow_pickle=allow_pickle,
        weights=weights,
    )
    recorded = bundle.manifest["checkpoint"]
    told = recorded and model.checkpoint and recorded["sha256"] == model.checkpoint.sha256
    for note in model.notes:  # the export of the same file told them
        log.log(logging.DEBUG if told else logging.INFO, "%s: %s", checkpoint.name, note)
    return model


def settings_from_manifest(config: ModelConfig, task: Task) -> dict[str, str]:
    """The manifest's word on what weights cannot tell, in the form of `--set`."""
    preprocess, patch = config.preprocess, config.patch_size
    told = {
        # Of the position embedding, which need not be square; what to run at is the bundle's.
        "image_size": "x".join(str(side * patch) for side in config.native_grid),
        "family": config.family,
        "num_heads": str(config.num_heads),
        "mean": ",".join(map(str, preprocess.mean)),
        "std": ",".join(map(str, preprocess.std)),
        "crop_ratio": str(preprocess.crop_ratio),
        "interpolation": preprocess.interpolation,
    }
    if config.frames:
        told["frames"] = str(config.frames)
    told |= {name: typed(getattr(config.task, name)) for name in task.settings}
    if config.settings is not None:
        told |= {name: typed(value) for name, value in asdict(config.settings).items()}
    family = family_of(config)
    if config.num_gates and family.method.trained_gates:  # else the settings tell the places
        told["gate_blocks"] = typed(config.gate_blocks)
        if family.class_token:
            told["gate_class_token"] = typed(config.gate_class_token)
    return told
