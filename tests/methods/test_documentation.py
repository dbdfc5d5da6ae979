"""docs/methods.md tells what weights cannot: the table is written from the families, and holds."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from svit_deploy.errors import InputError
from svit_deploy.io.checkpoint import read_checkpoint
from svit_deploy.loading.layout import to_official
from svit_deploy.loading.load import build_model
from svit_deploy.loading.random import random_weights
from svit_deploy.methods.families import FAMILIES
from svit_deploy.model.arch import Arch
from svit_deploy.tasks import TASKS
from tests.methods.test_hostile import tensors
from tests.small_models import small_model
from tests.told import checkpoint_of

pytest.importorskip("torch")

SCRIPT = Path(__file__).parents[2] / "docs" / "families_table.py"
DETECTION = {"svit_adapter", "vit_adapter", "evovit_adapter", "vit_window_adapter"}
DETECTION |= {"swin_pyramid", "stvitr_pyramid"}
GOLDENS = {*DETECTION, "video_swin"}
WHOLE = {"swin_pyramid": "swin_cascade", "stvitr_pyramid": "stvitr_cascade"}
SMALL = {"dynamicvit_adapter", "vit_adapter_class", "evit_adapter", "ats_adapter"}
SMALL |= {"svit_adapter_variant"}
VALUES = {"base_rate": "0.7", "keep_rate": "0.7", "fuse": "true", "r": "13", "skip_lam": "2"}
VALUES |= {"gate_scale": "10", "gate_center": "30"}


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("families_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_as_the_families_are(page):
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.BEGIN in text and page.END in text
    assert page.with_table(text) == text, "run python docs/families_table.py"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_asks_for_what_the_table_says(page, family):
    """Of a model without a preset: what is left out of either column, and of none else."""
    row = next(row for row in page.table().splitlines() if f"(`{family}`)" in row)
    _, needed, guessed = (re.findall(r"`(\w+)`", cell) for cell in row.split(" | ")[4:])
    task, name = (
        "classify",
        {"vit_adapter": "vit_adapter_dense", **WHOLE}.get(family, family),
    )
    if family in GOLDENS:
        task = FAMILIES[family].backbone.tasks[0]
        weights = read_checkpoint(checkpoint_of(name)).tensors
    elif family == "stvit_video":
        task = "video"
        weights = to_official(small_model(family, task).weights, family, TASKS[task])
    elif family in SMALL:
        task = "backbone"
        dims = FAMILIES[family].dims_from_arch(Arch(family, 3, 24, 12, 16))
        drawn = random_weights(dims, TASKS[task], np.random.default_rng(0))
        weights = to_official(drawn, dims.family, TASKS[task])
    else:
        weights = tensors(family)
    given = {"family": family, "num_heads": "3"}
    given |= {name: VALUES[name] for name in (*needed, *guessed) if name in VALUES}
    model = build_model(weights, task=task, overrides=given)
    asked = {one.name for one in model.assumptions if one.is_guess()}
    assert asked == set(guessed) - VALUES.keys()
    for name in VALUES.keys() & given.keys():
        less = {key: value for key, value in given.items() if key != name}
        with pytest.raises(InputError, match=rf"arguments tell .*\b{name}\b"):
            build_model(weights, task=task, overrides=less)
