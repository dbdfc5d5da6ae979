"""Decisions at a cut: what rounding may flip, what a budget cuts, and what is said of it."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.model.config import TokenMode
from svit_deploy.model.counts import kept_counts
from svit_deploy.model.sizes import SizeRange
from svit_deploy.verify.expected import LiveReference, StoredReference
from svit_deploy.verify.run import verify_against
from tests.verify.checks import SETTINGS, check, with_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("parity_only")]


# --- budgets -----------------------------------------------------------------------------------


def test_what_a_budget_cuts_is_noted(golden, export, verify):
    found = golden("svit_cls")
    counts = kept_counts(found.keep_mask, found.model.config)
    report = verify(export("svit_cls", "budget", budget="100"))
    assert report.passed, report.verdict
    assert (counts[:, 0] > 100).all()
    (note,) = report.notes
    assert note.startswith("the budgets cut tokens in 3 of 3 images (gates 0, 1, 2")
    assert "reference was given the same budgets" in note
    assert verify(export("svit_cls", "budget", budget="auto")).notes == []


def test_detectors_tell_what_their_export_chose_and_what_their_budgets_cut(
    detector, photo, tmp_path, verify
):
    chosen = with_config(thresholds=(0.125, -0.5, 0.0))(detector)
    settings = ExportSettings(
        task="detect", tokens=TokenMode.BUDGET, budget="0.5,0.9,0.25", calibration=photo
    )
    sizes = SizeRange.parse("96x128", 32)
    bundle = export_model(chosen, tmp_path / "bundle", settings, sizes=sizes)
    report = verify(bundle, detector)
    assert report.passed, report.verdict
    thresholds, cut = report.notes
    assert thresholds == (
        "the bundle's own thresholds are used, as chosen at export: 0.125, -0.5, 0"
    )
    assert cut.startswith("the budgets cut tokens in 1 of 1 image (gate")
    assert cut.endswith("the reference was given the same budgets")
    stored = verify_against(bundle, StoredReference(bundle), SETTINGS)
    assert stored.passed and stored.notes[-1] == cut


@pytest.mark.parametrize("budget", ["1", "100"])
def test_ties_at_the_cut_of_a_budget(golden, broken, verify, budget):
    """Equal tokens: which of them a budget keeps is decided by position, or by rounding."""
    found = golden("svit_cls")
    table = np.zeros_like(found.model.weights["pos_embed"])
    model = replace(found.model, weights=found.model.weights | {"pos_embed": table})
    flat = np.ones_like(found.inputs) * np.array([0.5, -1, 2], np.float32)[:, None, None, None]
    images = replace(found.images, arrays=flat)
    bundle = broken(mode="budget", model=model, budget=budget, calibration=images)
    for reference in (LiveReference(bundle, model), StoredReference(bundle)):
        report = verify_against(bundle, reference, SETTINGS)
        assert report.passed, report.verdict


# --- thresholds --------------------------------------------------------------------------------


@pytest.fixture
def shifted(golden, broken, verify, model_fault):
    """Verifies a graph whose first gate has margins moved up, by less than its limit, over a
    threshold that lies half as much above one of the reference's margins."""

    def run(shift):
        found = golden("svit_cls")
        margins = np.sort(found.margin[:, 0, 1:], axis=None)
        gaps = np.diff(margins)
        lone = margins[1:-1][np.minimum(gaps[1:], gaps[:-1]) > 1e-3][0]
        thresholds = (float(np.float32(lone + shift / 2)),) + (0.0,) * 8
        model = with_config(thresholds=thresholds)(found.model)

        def moved(model):
            bias = model.weights["gates.0.mlp.fc2.bias"].copy()
            bias[0] += np.float32(shift)
            return replace(model, weights=model.weights | {"gates.0.mlp.fc2.bias": bias})

        model_fault(moved)
        return verify(broken(model=model), model)

    return run


def test_a_decision_within_rounding_is_a_near_tie(shifted):
    report = shifted(4e-5)
    assert report.passed, report.verdict
    first, *others = report.gates
    assert (first.flips.near_ties, first.flips.faults) == (1, 0)
    later = sum(gate.flips.consequences for gate in others)
    assert 0 < first.flips.largest_margin < 4e-5 < first.rounding
    words = "decisions of 9 gates identical but for 1 near-tie flip"
    assert words + (f" and {later} decisions after it" if later else "") in report.verdict
    assert report.notes[0] == (
        "1 of 3 images flipped a decision; its logits are those of the graph on the reference's "
        "decisions"
    )
    assert check(report, "logits").passed


def test_a_decision_beyond_rounding_is_a_fault(shifted):
    report = shifted(5e-3)
    assert not report.passed
    detail = check(report, "gate decisions").detail
    assert re.match("gate 0 decides . tokens? differently, margins up to 0.00", detail)
