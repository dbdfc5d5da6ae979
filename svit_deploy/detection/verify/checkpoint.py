"""The checkpoint that a detection bundle is verified against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from svit_deploy.detection.bundle import DetectionBundle
from svit_deploy.detection.config import Task
from svit_deploy.detection.model import load_detector
from svit_deploy.models import Model
from svit_deploy.packages import require


def load_reference_detector(
    bundle: DetectionBundle,
    checkpoint: Path,
    *,
    arch: str | None = None,
    overrides: Mapping[str, str] | None = None,
    allow_pickle: bool = False,
) -> Model:
    """Loads a checkpoint independently of the bundle, as far as the caller's settings reach.

    Without `arch` and `overrides` the manifest is trusted for what weights cannot tell.
    """
    if bundle.task is Task.DETECT:
        require("torchvision", "verify --against", "the reference detections")
    if not arch and not overrides:
        config, preprocess = bundle.config, bundle.config.preprocess
        overrides = {
            "num_heads": str(config.num_heads),
            "deform_heads": str(config.deform_heads),
            "interaction_blocks": ",".join(map(str, config.interaction_blocks)),
            "mean": ",".join(map(str, preprocess.mean)),
            "std": ",".join(map(str, preprocess.std)),
        }
        if config.num_gates:
            overrides["gate_blocks"] = ",".join(map(str, config.gate_blocks))
    return load_detector(
        checkpoint,
        bundle.task,
        arch=arch,
        overrides=overrides,
        image_size=bundle.config.image_size,
        allow_pickle=allow_pickle,
    )
