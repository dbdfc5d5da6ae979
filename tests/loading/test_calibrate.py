"""Gate thresholds chosen from images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytest.importorskip("torch")

from svit_deploy.errors import InputError
from svit_deploy.images.prepared import Prepared
from svit_deploy.loading.calibrate import calibrate_gates, threshold_for
from svit_deploy.model.counts import keep_ratios
from svit_deploy.tasks import TASKS
from svit_deploy.tasks.reference import Reference

CLASSIFY = TASKS["classify"]

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
        Reference(found.model, CLASSIFY), found.prepared, targets, lambda *done: steps.append(done)
    )
    assert steps == [(gate + 1, 9) for gate in range(9)]
    config = replace(found.model.config, thresholds=calibrated.thresholds)
    result = Reference(replace(found.model, config=config), CLASSIFY).run(found.prepared)
    assert keep_ratios(result.selected.keep_mask, config) == pytest.approx(calibrated.measured_keep)
    tokens = [len(found.inputs) * config.gated_tokens(gate) for gate in range(9)]
    np.testing.assert_allclose(calibrated.measured_keep, targets, atol=0.51 / min(tokens))


def test_calibration_does_not_depend_on_batches(digits, heldout):
    inputs = heldout[:40].inputs(digits.config.preprocess, digits.config.image_size)
    images, targets = [Prepared.whole(one) for one in inputs], digits.config.target_keep
    together = calibrate_gates(Reference(digits, CLASSIFY), images, targets)
    backwards = calibrate_gates(Reference(digits, CLASSIFY), images[::-1], targets)
    np.testing.assert_allclose(together.thresholds, backwards.thresholds, atol=1e-4)
    assert together.measured_keep == pytest.approx(backwards.measured_keep)
