"""What weights do not tell: the settings of the goldens, and of models made for a test.

And where the goldens' weights are: some have those of another. Tiny models have no published shape,
so an export takes nothing about them for granted.
"""

from __future__ import annotations

import atexit
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from svit_deploy.loading.load import build_model
from svit_deploy.model.model import Model
from svit_deploy.tasks import task_named
from svit_deploy.verify.checkpoint import settings_from_manifest

GOLDEN = Path(__file__).parent / "data" / "golden"
HEADS = {"num_heads": "6"}
LAST_NINE = {"gate_blocks": "3,4,5,6,7,8,9,10,11"}
SVIT = HEADS | LAST_NINE | {"gate_class_token": "false," * 8 + "true"}
EVIT = HEADS | {"family": "evit", "prune_blocks": "3,6,9"}
ADAPTER = HEADS | {"deform_heads": "6", "interaction_blocks": "3,3,3,3"}
EVOVIT = {"tradeoff": "0.5"}
EVOVIT_ADAPTER = {
    **ADAPTER,
    **EVOVIT,
    "prune_ratio": ",".join(["0.5"] * 8),
    "prune_blocks": "4,5,6,7,8,9,10,11",
    "early_tradeoff": "1",
}
IMAGENET = {"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225"}
SETTINGS: dict[str, dict[str, str]] = {
    "svit_cls": SVIT,
    "svit_cls_224": SVIT,
    "svit_cls_empty_gate": SVIT,
    "deit": HEADS,
    "deit_distilled": {"num_heads": "3"},
    "dynamicvit": HEADS | {"prune_blocks": "3,6,9"},
    "dynamicvit_lvvit": HEADS | {"prune_blocks": "2,4,6", "skip_lam": "2"},
    "dynamicvit_swin": {"prune_blocks": "5,6,7"},
    "dynamicvit_convnext": {"prune_blocks": "3,4,5", "image_size": "128"},
    "evit_fuse": EVIT | {"keep_rate": "0.7", "fuse": "true"},
    "evit_nofuse": EVIT | {"fuse": "false"},  # the arguments in this container say otherwise
    "evovit": HEADS | EVOVIT | {"prune_ratio": "0.5,0.5", "prune_blocks": "4,8"},
    "ats": HEADS | {"family": "ats", "ats_blocks": LAST_NINE["gate_blocks"]},
    "avit": HEADS | {"family": "avit"},
    "tome": HEADS | {"family": "tome", "r": "13", "inflect": "0", "prop_attn": "true"},
    "stvitr": {"shortcut": "false"},
    "lvvit": {"family": "lvvit", "num_heads": "4", "skip_lam": "2"},
    "svit_adapter": ADAPTER | LAST_NINE,
    "vit_adapter_dense": ADAPTER,
    "vit_window_adapter": ADAPTER | {"windows": "14,14,0," * 3 + "14,14,0"},
    "swin_cascade": {},
    "stvitr_cascade": {},
    "svit_mask_rcnn": ADAPTER | LAST_NINE,
    "evovit_adapter": EVOVIT_ADAPTER,
    "evovit_mask_rcnn": EVOVIT_ADAPTER,
    "video_swin": {"frames": "10", "image_size": "48"},
}
"""Fields of an architecture by golden, as typed after `--set`; its meta.json says the same."""


def skip_without_data() -> None:
    """Skips a test, or a module of tests, where the goldens are not."""
    if not GOLDEN.exists():
        import pytest

        pytest.skip("tests/data is not in the source distribution", allow_module_level=True)


def golden_file(golden: str, name: str) -> Path:
    """A file of a golden."""
    skip_without_data()
    return GOLDEN / golden / name


@cache
def checkpoint_of(golden: str) -> Path:
    """A golden's checkpoint: its own, or made of another golden's as its meta.json says.

    `weights` there has `of`, that golden; `entries` of its container that are taken; `names`, what
    the keys of tensors that are taken begin with, a regular expression; and tensors `changed`.
    """
    own = golden_file(golden, "checkpoint.pth")
    told = json.loads(golden_file(golden, "meta.json").read_text()).get("weights")
    if not told:
        return own
    import torch

    content = torch.load(golden_file(told["of"], own.name), weights_only=False)
    made = {entry: content[entry] for entry in told["entries"]}
    key = "model" if "model" in made else "state_dict"
    tensors = {name: t for name, t in made[key].items() if re.match(told["names"], name)}
    changed = told.get("changed", {})
    assert changed.keys() <= tensors.keys()
    tensors |= {name: torch.tensor(values) for name, values in changed.items()}
    made[key] = type(made[key])(tensors)
    path = _folder() / golden / own.name
    path.parent.mkdir()
    torch.save(made, path)
    return path


@cache
def _folder() -> Path:
    """Where checkpoints are made, while this process lives."""
    folder = tempfile.mkdtemp(prefix="goldens-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def as_options(settings: Mapping[str, str]) -> list[str]:
    """Settings on a command line."""
    return [text for pair in settings.items() for text in ("--set", "=".join(pair))]


def build_told(
    weights: Mapping[str, np.ndarray], overrides: Mapping[str, str], task: str = "classify"
) -> Model:
    """A model with the usual settings, each of them given."""
    found = build_model(weights, task=task, overrides=overrides)
    usual = settings_from_manifest(found.config, task_named(task))
    return build_model(weights, task=task, overrides={**usual, **overrides})
