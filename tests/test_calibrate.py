"""Gate thresholds and token budgets chosen from images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytest.importorskip("torch")

from svit_deploy.calibrate import auto_budgets, calibrate_gates, threshold_for
from svit_deploy.compare import keep_ratios, kept_counts
from svit_deploy.config import ModelConfig, TokenMode
from svit_deploy.errors import InputError, UsageError
from svit_deploy.export.onnx import ExportSettings, export_model
from svit_deploy.models.reference import Reference
from svit_deploy.verify import Recomputed, VerifySettings, verify_bundle

margins = arrays.arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.one_of(
        st.floats(-100, 100, width=32), st.sampled_from([0.0, 1.0, 1.0000001, -0.0])
    ),
)


@given(margins, st.floats(0.001, 1))
def test_threshold_keeps_the_nearest_share_that_any_threshold_can(margins, target):
    threshold = threshold_for(margins, target)
    assert threshold == float(np.float32(threshold))
    wanted = round(target * margins.size)
    possible = {int((margins > value).sum()) for value in [*margins, -np.inf]}
    kept = int((margins > np.float32(threshold)).sum())
    assert abs(kept - wanted) == min(abs(count - wanted) for count in possible)


@given(margins, st.floats(0.001, 1))
def test_threshold_is_as_far_from_both_neighbours(margins, target):
    threshold = threshold_for(margins, target)
    above, below = margins[margins > threshold], margins[margins <= threshold]
    if above.size and below.size:
        middle = (float(above.min()) + float(below.max())) / 2
        assert abs(threshold - middle) <= np.spacing(np.float32(above.min() - below.max())) + abs(
            np.spacing(np.float32(middle))
        )
    else:
        assert np.abs(margins - threshold).min() >= 1e-3 * 0.99


def test_threshold_of_a_few_margins():
    values = np.array([3.0, 1.0, 2.0, 0.0], np.float32)
    assert threshold_for(values, 0.5) == 1.5
    assert threshold_for(values, 1.0) == pytest.approx(-1e-3)
    assert threshold_for(values, 0.01) == pytest.approx(3 + 3e-3)


def test_equal_margins_are_kept_together_if_that_is_nearer():
    ties = np.zeros(10, np.float32)
    assert (ties > threshold_for(ties, 0.7)).all()
    assert not (ties > threshold_for(ties, 0.3)).any()


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_threshold_of_broken_margins_is_refused(broken):
    with pytest.raises(InputError, match="NaN or infinity"):
        threshold_for(np.array([0, broken], np.float32), 0.5)


def test_calibrated_gates_keep_what_they_should(golden):
    """Each on the feature maps that the earlier thresholds leave."""
    found = golden("svit_cls")
    targets = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    steps = []
    calibrated = calibrate_gates(
        Reference(found.model), found.inputs, targets, lambda *done: steps.append(done)
    )
    assert steps == [(gate + 1, 9) for gate in range(9)]
    config = replace(found.model.config, thresholds=calibrated.thresholds)
    outputs = Reference(replace(found.model, config=config)).run(found.inputs)
    assert keep_ratios(outputs.keep_mask, config) == pytest.approx(calibrated.measured_keep)
    tokens = [len(found.inputs) * config.gated_tokens(gate) for gate in range(9)]
    np.testing.assert_allclose(calibrated.measured_keep, targets, atol=0.51 / min(tokens))


def test_calibration_does_not_depend_on_batches(digits, heldout):
    inputs = heldout[:40].inputs(digits.config.preprocess, digits.config.image_size)
    targets = digits.config.target_keep
    together = calibrate_gates(Reference(digits), inputs, targets)
    backwards = calibrate_gates(Reference(digits), np.ascontiguousarray(inputs[::-1]), targets)
    np.testing.assert_allclose(together.thresholds, backwards.thresholds, atol=1e-4)
    assert together.measured_keep == pytest.approx(backwards.measured_keep)


def test_a_calibrated_export_is_verified_with_its_own_thresholds(digits, heldout, tmp_path):
    settings = ExportSettings(calibrate_gates=heldout[:16], target_keep=(0.5, 0.25))
    bundle = export_model(digits, tmp_path / "bundle", settings)
    config = bundle.config
    assert config.target_keep == (0.5, 0.5, 0.25, 0.25)
    assert all(threshold != 0 for threshold in config.thresholds)
    measured = [gate["measured_keep"] for gate in bundle.manifest["gates"]]
    np.testing.assert_allclose(measured, config.target_keep, atol=1e-3)
    expectations = Recomputed(bundle, digits, heldout[16:32])
    report = verify_bundle(bundle, expectations, VerifySettings(threads=1, repeats=2))
    assert report.passed, report.verdict
    assert report.notes == [
        "the bundle's own thresholds are used, as chosen at export: "
        + ", ".join(f"{threshold:.4g}" for threshold in config.thresholds)
    ]


def test_dense_exports_ignore_the_calibration_of_gates(digits, heldout, tmp_path):
    settings = ExportSettings(tokens=TokenMode.DENSE, calibrate_gates=heldout[:2])
    bundle = export_model(digits, tmp_path / "bundle", settings)
    assert bundle.config.thresholds == ()


def test_targets_that_nobody_knows_are_asked_for(golden, tmp_path):
    found = golden("svit_cls")
    with pytest.raises(UsageError, match="--target-keep"):
        export_model(found.model, tmp_path / "b", ExportSettings(calibrate_gates=found.images))


def svit(tokens: int, class_token: bool) -> ModelConfig:
    """One gate on `tokens` patches."""
    grid = (1, tokens)
    return ModelConfig("svit", 4, 1, 1, 8, 1, 2, grid, grid, False, (0,), (class_token,))


@given(st.data(), st.integers(1, 20), st.floats(0.1, 100), st.booleans())
def test_budgets_fit_the_share_of_images_asked_for(data, images, percentile, class_token):
    config = svit(12, class_token)
    keep = data.draw(arrays.arrays(bool, (images, 1, 13)))
    keep[:, :, 0] |= not class_token
    (budget,) = auto_budgets(keep, config, percentile)
    counts = kept_counts(keep, config)[:, 0]
    assert 1 <= budget <= config.gated_tokens(0)
    assert (counts <= budget).mean() >= percentile / 100 - 1e-9
    if percentile == 100:
        assert budget == max(1, counts.max())


def test_budgets_of_a_gate_that_keeps_nothing():
    keep = np.zeros((3, 1, 13), bool)
    keep[:, :, 0] = True
    assert auto_budgets(keep, svit(12, False), 100) == (1,)
