"""A short detector as a user has it: a checkpoint on disk, bundles of it, and pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from svit_deploy import api
from svit_deploy.bundle.bundle import Bundle
from svit_deploy.images.synthetic import paint_scene
from svit_deploy.loading.layout import to_official
from svit_deploy.tasks import TASKS
from tests.shortened import SETTINGS, shortened

SIZES = "64x64:96x128:256x256"


@pytest.fixture(scope="session")
def checkpoint(detection_golden: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole detector in mmcv's container; `--task backbone` takes a part of it."""
    import torch

    model = shortened(detection_golden("svit_mask_rcnn").detector)
    weights = to_official(model.weights, model.config.family, TASKS["detect"])
    content = {
        "meta": {"CLASSES": model.config.task.class_names},
        "state_dict": {name: torch.from_numpy(array) for name, array in weights.items()},
    }
    path = tmp_path_factory.mktemp("checkpoint") / "short.pth"
    torch.save(content, path)
    return path


@pytest.fixture(scope="session")
def export(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """Exports it once per session: task, token mode, more options."""

    @cache
    def make(task: str, mode: str, **options: Any) -> Bundle:
        output = tmp_path_factory.mktemp(f"{task}-{mode}") / "bundle"
        budget = "0.9,0.7,0.5" if mode == "budget" else None
        options = {"image_size": SIZES, "budget": budget, **options}
        return api.export(checkpoint, output, task=task, tokens=mode, overrides=SETTINGS, **options)

    return make


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two painted pictures, upright and across."""
    folder = tmp_path_factory.mktemp("photos")
    for name, size in (("across", (60, 90)), ("upright", (90, 50))):
        picture = paint_scene(*size, np.random.default_rng(len(name)))
        Image.fromarray(picture).save(folder / f"{name}.png")
    return folder
