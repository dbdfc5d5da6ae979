"""An adapter's graph equals its reference where the official code has nothing to tell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy.backbones.rules import keep_above, keep_budget
from svit_deploy.loading.load import load_model
from svit_deploy.model.budget import budgets_of, rows_within
from svit_deploy.model.model import Model, without_gates
from svit_deploy.model.sizes import SizeRange
from tests.backbones.adapter.running import (
    FREE,
    STRIDES,
    assert_same_maps,
    reference,
    run,
    sizes_of,
)
from tests.shortened import shortened

PRUNING = ("dynamic", "budget", "masked")


@pytest.fixture(scope="module")
def model(detection_golden: Any) -> Model:
    """One interaction with three gated blocks."""
    return shortened(detection_golden("svit_adapter").backbone)


@pytest.fixture(scope="module")
def images(detection_golden: Any) -> np.ndarray:
    return detection_golden("svit_adapter").arrays["input_160x96"]


@pytest.mark.parametrize("sizes", [FREE, sizes_of("160x96")], ids=str)
def test_a_budget_cuts_the_lowest_margins(model: Model, images: Any, sizes: SizeRange) -> None:
    shares = (0.5, 0.333, 0.25)
    outputs = run(model, "budget", images, sizes, shares)
    rows = rows_within(budgets_of(model.config, shares), 60)
    assert rows.tolist() == [30, 20, 15]
    rule = keep_budget(keep_above(model.config.thresholds), rows)
    expected = reference(model, images, rule)
    assert (outputs["keep_mask"] == expected.selected.keep_mask).all()
    assert_same_maps(outputs, expected.stages)
    assert outputs["overflow"].max() > 0


def test_dense_twin_of_a_sparse_backbone(model: Model, images: Any) -> None:
    twin = without_gates(model)
    assert_same_maps(run(twin, "dense", images), reference(twin, images).stages)


@pytest.mark.parametrize(("heads", "mode"), [*(("3", mode) for mode in PRUNING), ("1", "dynamic")])
def test_odd_head_counts_run_in_batches(
    detection_golden: Any, images: Any, mode: str, heads: str
) -> None:
    """The official code cannot; three heads are those of SViT-Adapter-T."""
    path = detection_golden("svit_adapter").path
    model = shortened(load_model(path, task="backbone", overrides={"num_heads": heads}))
    alone = [reference(model, image[None]).stages for image in images]
    for batch in (1, 2):
        together = {n: np.concatenate([one[n] for one in alone[:batch]]) for n in STRIDES}
        assert_same_maps(run(model, mode, images[:batch]), together)


@pytest.mark.parametrize("threshold", [-1e30, 1e30])
@pytest.mark.parametrize("mode", PRUNING)
def test_everything_and_nothing_kept(
    model: Model, images: Any, mode: str, threshold: float
) -> None:
    config = replace(model.config, thresholds=(threshold,) * 3)
    model = replace(model, config=config)
    outputs = run(model, mode, images)
    assert (outputs["keep_mask"] == (threshold < 0)).all()
    assert_same_maps(outputs, reference(model, images).stages, atol=3e-5)
