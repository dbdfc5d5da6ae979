"""Goldens of the methods, and bundles of them, each made once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from svit_deploy.bundle.bundle import Bundle
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.images.prepared import Prepared
from svit_deploy.images.sets import ImageSet, synthetic_images
from svit_deploy.io.checkpoint import read_checkpoint
from svit_deploy.loading.layout import to_official
from svit_deploy.loading.load import build_model, load_model
from svit_deploy.loading.random import random_weights
from svit_deploy.methods.families import FAMILIES
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import TokenMode
from svit_deploy.model.model import Model
from svit_deploy.tasks import TASKS
from tests.told import SETTINGS, build_told, checkpoint_of, golden_file

MADE: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "mergence": ({"keep_rate": "0.7"}, {}),
    "evit_lvvit": (
        {"keep_rate": "0.7", "fuse": "true", "skip_lam": "2", "prune_blocks": "3,6,9"},
        {},
    ),
    "mergence_lvvit": ({"keep_rate": "0.7", "skip_lam": "2", "prune_blocks": "3,6,9"}, {}),
    "multiscale": ({"keep_rate": "0.7"}, {}),
    "multiscale_lvvit": ({"keep_rate": "0.7", "skip_lam": "2"}, {}),
    "tome_lvvit": ({"r": "13", "skip_lam": "2"}, {}),
    "stvit": ({}, {"semantic": 16}),
    "stvit_lvvit": ({"skip_lam": "2"}, {"semantic": 16}),
    "stvit_swin": ({}, {"depths": (1, 1, 5, 1), "semantic": 36, "generate_at": 3}),
    "swin": ({}, {"depths": (2, 2, 2, 2)}),
    "convnext": ({}, {"depths": (1, 1, 2, 1)}),
}

STVITR_WEIGHTS = {
    "relative_pos": "relative_position",
    "use_global": "semantic_token2",
    "use_conv_pos": "conv_pos",
}
"""What the keys of weights contain that a setting of STViT-R brings."""
EVERYTHING = ("all", "two_units")
STVITR = ("shortcut", *STVITR_WEIGHTS, *EVERYTHING)
"""Recorded beside the golden that has none of them."""


@dataclass(frozen=True)
class Recording:
    """A checkpoint and what the official code computes from it."""

    model: Model
    arrays: dict[str, np.ndarray]

    @property
    def inputs(self) -> np.ndarray:
        return self.arrays["input"]

    @property
    def images(self) -> ImageSet:
        names = tuple(f"input-{i}" for i in range(len(self.inputs)))
        return ImageSet(self.inputs, names, None, "0" * 64, "npz")

    @property
    def prepared(self) -> list[Prepared]:
        return [Prepared.whole(pixels) for pixels in self.inputs]

    @property
    def keep_mask(self) -> np.ndarray:
        """`[B, G, N]`, without the class token."""
        return self.arrays["keep_masks"].transpose(1, 0, 2)

    def of_patches(self, masks: np.ndarray) -> np.ndarray:
        """Of `[B, G, columns]` the columns of patches."""
        config = self.model.config
        return masks[:, :, config.prefix_tokens : config.num_tokens]


def random_tensors(arch: Arch, seed: int, **changes: Any) -> dict[str, np.ndarray]:
    """Random weights of an architecture, in its official layout."""
    task = TASKS["classify"]
    dims = replace(FAMILIES[arch.family].dims_from_arch(arch), **changes)
    return to_official(random_weights(dims, task, np.random.default_rng(seed)), dims.family, task)


def random_model(family: str, overrides: Mapping[str, str], **settings: Any) -> Model:
    """Random weights of a method: 24 channels, 3 heads, 56 pixels; Swin's 224."""
    swin = "depths" in settings
    size, patch = (224, 4) if swin else (56, 4)
    arch = Arch(family, 3, 24, 12, patch, (size, size), num_classes=5, settings=settings)
    overrides = {"family": family, "num_heads": "3", **overrides}
    return build_told(random_tensors(arch, seed=3), overrides)


def stvitr_tensors(variant: str) -> dict[str, np.ndarray]:
    """The golden's weights in the official layout, with those of one of `STVITR`.

    A second unit has the weights of the first, and its biases by position negated.
    """
    parts = [part for name, part in STVITR_WEIGHTS.items() if variant in (name, *EVERYTHING)]
    with np.load(golden_file("stvitr", "variants.npz")) as file:
        more = {
            key: file[key]
            for key in file.files
            if key.startswith("layers.") and any(part in key for part in parts)
        }
    tensors = read_checkpoint(checkpoint_of("stvitr")).tensors | more
    if variant == "two_units":
        for key in list(tensors):
            if found := re.fullmatch(r"(layers\.2\.blocks\.)(\d)(\..*)", key):
                sign = -1 if key.endswith("table") else 1
                tensors[f"{found[1]}{6 + int(found[2])}{found[3]}"] = sign * tensors[key]
    return tensors


def load_stvitr(variant: str) -> Recording:
    told = {"shortcut": str(variant in ("shortcut", *EVERYTHING))}
    with np.load(golden_file("stvitr", "variants.npz")) as file:
        logits = file[f"logits_{variant}"]
    with np.load(golden_file("stvitr", "io.npz")) as io:
        arrays = {"input": io["input"], "logits": logits}
    return Recording(build_model(stvitr_tensors(variant), overrides=told), arrays)


@cache
def load_recording(name: str) -> Recording:
    """A golden, or for a method without public code a model whose output no one recorded."""
    pytest.importorskip("torch")
    if name.startswith("stvitr_"):
        return load_stvitr(name.removeprefix("stvitr_"))
    if name in MADE:
        model = random_model(name, MADE[name][0], **MADE[name][1])
        inputs = synthetic_images(2, model.config.image_size)
        return Recording(
            model, {"input": inputs.inputs(model.config.preprocess, model.config.image_size)}
        )
    with np.load(golden_file(name, "io.npz")) as io:
        arrays = {key: io[key] for key in io.files}
    return Recording(load_model(checkpoint_of(name), overrides=SETTINGS[name]), arrays)


@pytest.fixture(scope="session")
def recording() -> Callable[[str], Recording]:
    return load_recording


@pytest.fixture(scope="session")
def export_recording(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """Exports a golden: its name, the token mode, whether decisions are outputs, other settings."""

    @cache
    def make(name: str, mode: str, shown: bool = True, **settings: str) -> Bundle:
        found = load_recording(name)
        chosen = ExportSettings(
            tokens=TokenMode(mode), calibration=found.images, gate_outputs=shown, **settings
        )
        return export_model(found.model, tmp_path_factory.mktemp(name) / "bundle", chosen)

    return make
