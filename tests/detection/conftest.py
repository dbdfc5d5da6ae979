"""Golden detection checkpoints, and what the official code computes from them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from svit_deploy.detection.config import Task
from svit_deploy.detection.model import load_detector
from svit_deploy.models import Model

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
BACKBONES = {"svit_adapter": ("96x128", "160x96"), "vit_adapter_dense": ("96x128",)}
HEADS = {"num_heads": "6"}


@dataclass(frozen=True)
class DetectionGolden:
    """A checkpoint, its two models, and the arrays of io.npz."""

    name: str
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    backbone: Model
    detector: Model | None

    @property
    def path(self) -> Path:
        return GOLDEN / self.name / "checkpoint.pth"

    def features(self, size: str) -> list[np.ndarray]:
        return [self.arrays[f"f{i}_{size}"] for i in (1, 2, 3, 4)]


@cache
def load_golden(name: str) -> DetectionGolden:
    pytest.importorskip("torch")
    folder = GOLDEN / name
    with np.load(folder / "io.npz") as io:
        arrays = {key: io[key] for key in io.files}
    path = folder / "checkpoint.pth"
    whole = name == "svit_mask_rcnn"
    return DetectionGolden(
        name,
        json.loads((folder / "meta.json").read_text()),
        arrays,
        load_detector(path, Task.BACKBONE, overrides=HEADS),
        load_detector(path, Task.DETECT, overrides=HEADS) if whole else None,
    )


@pytest.fixture(scope="session")
def golden() -> Any:
    """A detection golden by name."""
    return load_golden
