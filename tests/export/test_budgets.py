"""Budgets keep the highest margins, exactly as many as they say, and are refused if they cannot."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy.backbones.rules import keep_above, keep_budget
from svit_deploy.errors import UsageError
from svit_deploy.export.budgets import choose_budgets
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.model.config import TokenMode
from svit_deploy.model.counts import kept_counts
from svit_deploy.model.sizes import SizeRange
from svit_deploy.tasks import TASKS
from tests.export.running import LOGITS, assert_as_recorded, reference, run


@pytest.mark.parametrize("name", ["svit_cls", "svit_cls_empty_gate"])
def test_budgets_measured_on_the_very_images_are_exact(golden, export, name):
    found = golden(name)
    bundle = export(name, "budget", budget="auto")
    counts = kept_counts(found.keep_mask, found.model.config)
    assert [budget.value for budget in bundle.budgets] == np.maximum(1, counts.max(0)).tolist()
    outputs = run(bundle, found.inputs)
    assert_as_recorded(found, outputs)
    assert not outputs["overflow"].any()


@pytest.mark.parametrize("budget", ["60", "0.25", "150,100,30", "1"])
def test_a_budget_keeps_the_highest_margins(golden, export, budget):
    found = golden("svit_cls")
    config = found.model.config
    bundle = export("svit_cls", "budget", budget=budget)
    outputs, rows_of = run(bundle, found.inputs), bundle.rows(config.image_size)
    for gate, rows in enumerate(rows_of):
        for image in range(len(found.inputs)):
            margin = outputs["margin"][image, gate]
            wanted = np.flatnonzero(margin > 0)
            best = wanted[np.argsort(-margin[wanted], kind="stable")][:rows]
            kept = np.flatnonzero(outputs["keep_mask"][image, gate])
            assert sorted(best) == kept.tolist()
            assert outputs["overflow"][image, gate] == max(0, len(wanted) - rows)
        gated = kept_counts(outputs["keep_mask"], config)[:, gate]
        assert gated.max() <= bundle.budgets[gate].value
    # Nothing was cut before the first gate: the official code tells how much there was.
    counts = found.keep_mask[:, 0].sum(axis=1)
    assert outputs["overflow"][:, 0].tolist() == (counts - rows_of[0]).clip(0).tolist()
    rule = keep_budget(keep_above(config.thresholds), rows_of)
    logits, keep_mask = reference(found.model, found.inputs, rule)
    np.testing.assert_array_equal(outputs["keep_mask"], keep_mask)
    np.testing.assert_allclose(outputs["logits"], logits, rtol=0, atol=LOGITS)


@pytest.mark.parametrize(
    ("text", "budgets"),
    [
        ("0.5", (98,) * 8 + (99,)),
        ("196", (196,) * 9),
        ("100,50,20", (100,) * 3 + (50,) * 3 + (20,) * 3),
        ("0.001", (1,) * 9),
    ],
)
def test_budgets_are_counts_or_ratios(golden, text, budgets):
    model, settings = golden("svit_cls").model, ExportSettings(tokens=TokenMode.BUDGET, budget=text)
    sizes = SizeRange.single(model.config.image_size)
    found = choose_budgets(model, TASKS["classify"], settings, None, sizes)
    assert tuple(budget.value for budget in found) == budgets


def test_the_manifest_tells_each_gate_its_budget(export):
    bundle = export("svit_cls", "budget", budget="150,100,30")
    expected = [150] * 3 + [100] * 3 + [30] * 3
    assert [budget.value for budget in bundle.budgets] == expected
    assert [gate["budget"] for gate in bundle.manifest["gates"]] == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "--budget 0.75,0.55,0.4"),
        ({"budget": "0"}, "out of range"),
        ({"budget": "197"}, "a count from 1 to 196"),
        ({"budget": "1.5"}, "out of range"),
        ({"budget": "-3"}, "out of range"),
        ({"budget": "0.5,0.4"}, "2 values for a model with 9 gates"),
        ({"budget": "many"}, "neither a count nor a ratio"),
        ({"budget": "nan"}, "neither a count nor a ratio"),
        ({"budget": ""}, "neither a count nor a ratio"),
        ({"budget": "auto"}, "--calibration"),
    ],
)
def test_budgets_that_cannot_work_are_refused(golden, tmp_path, settings, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        export_model(
            golden("svit_cls").model,
            tmp_path / "bundle",
            ExportSettings(tokens=TokenMode.BUDGET, **settings),
        )
    assert not list(tmp_path.iterdir())
