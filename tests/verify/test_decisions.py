"""Decisions, flips, and what explains them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from svit_deploy.model.config import ModelConfig
from svit_deploy.verify.decisions import (
    GateFlips,
    compare_masks,
    decision_distance,
    effective_keep,
)


def svit(tokens: int, *class_token: bool) -> ModelConfig:
    """One gate per value, on `tokens` tokens with the class token."""
    gates, grid = len(class_token), (1, tokens - 1)
    return ModelConfig(
        "svit", 4, gates, 1, 8, 1, 2, grid, grid, False, tuple(range(gates)), class_token
    )


def masks(*rows: str) -> np.ndarray:
    """`[1, G, S]` from strings such as `"x.x"`, one per gate."""
    return np.array([[[token == "x" for token in row] for row in rows]])


# --- decisions ---------------------------------------------------------------------------------

MARGINS = arrays.arrays(
    np.float32,
    (1, 2, 6),
    elements=st.one_of(st.floats(-4, 4, width=16), st.sampled_from([0.0, 0.5, 1.0, np.inf])),
)
THRESHOLDS = arrays.arrays(np.float32, 2, elements=st.sampled_from([0.0, 0.5, -1.25]))
ROWS = arrays.arrays(np.int64, 2, elements=st.integers(1, 6))


def decide(margin, thresholds, rows):
    return effective_keep(margin > thresholds[None, :, None], margin, rows)


@given(MARGINS, THRESHOLDS, ROWS)
def test_a_budget_keeps_the_highest_margins_and_of_equal_ones_the_first(margin, thresholds, rows):
    keep = decide(margin, thresholds, rows)
    for gate in range(2):
        wanted = [i for i in range(6) if margin[0, gate, i] > thresholds[gate]]
        best = sorted(wanted, key=lambda i: (-margin[0, gate, i], i))[: rows[gate]]
        assert np.flatnonzero(keep[0, gate]).tolist() == sorted(best)


@given(MARGINS, THRESHOLDS)
def test_without_a_budget_or_with_a_full_one_decisions_stay(margin, thresholds):
    decision = margin > thresholds[None, :, None]
    assert (effective_keep(decision, margin, None) == decision).all()
    assert (effective_keep(decision, margin, np.array([6, 6])) == decision).all()


@given(MARGINS, THRESHOLDS, st.none() | ROWS)
def test_distance_is_the_least_disturbance_that_turns_a_decision(margin, thresholds, rows):
    """The worst disturbance moves a token against all others: up if pruned, down if kept."""
    if rows is not None:  # a budget lets every token through that is always kept
        rows = np.maximum(rows, np.isinf(margin).sum(axis=2)[0])
    margin = margin.astype(np.float64)
    keep = decide(margin, thresholds, rows)
    distance = decision_distance(margin, thresholds, rows)
    for gate in range(2):
        for token in range(6):
            kept = keep[0, gate, token]

            def turned_by(reach, gate=gate, token=token, kept=kept):
                disturbed = margin + np.where(kept, reach, -reach)
                disturbed[0, gate, token] = margin[0, gate, token] + np.where(kept, -reach, reach)
                return decide(disturbed, thresholds, rows)[0, gate, token] != kept

            reach = distance[0, gate, token]
            if np.isinf(reach):
                assert not turned_by(100.0)
            else:
                assert turned_by(reach + 1e-6)
                assert reach < 1e-6 or not turned_by(reach - 1e-6)


def test_distance_at_the_threshold_and_at_the_cut():
    margin = np.array([[[np.inf, 3.0, 2.0, 1.0, 0.25, -1.0]]])
    zero = np.zeros(1, np.float32)
    inf = np.inf
    assert decision_distance(margin, zero, None).tolist() == [[[inf, 3, 2, 1, 0.25, 1]]]
    # Two tokens too many: 2 is the last kept, 1 the first pruned.
    tight = decision_distance(margin, zero, np.array([3]))
    assert tight.tolist() == [[[inf, 1, 0.5, 0.5, 0.875, 1.5]]]
    # None too many: to be overtaken by -1, it would have to come up to 0.
    assert decision_distance(margin, zero, np.array([5]))[0, 0, 4] == 0.25
    # A tie at the cut can fall either way.
    ties = np.array([[[2.0, 1.0, 1.0, 1.0]]])
    assert decision_distance(ties, zero, np.array([2])).tolist() == [[[0.5, 0, 0, 0]]]


# --- flips -------------------------------------------------------------------------------------


def compare(actual, expected, margin, rounding=0.1, class_token=None):
    config = svit(actual.shape[2], *(class_token or (False,) * actual.shape[1]))
    distance = decision_distance(margin, np.zeros(actual.shape[1]), None)
    return compare_masks(actual, expected, distance, np.full(actual.shape[1], rounding), config)


def test_a_flip_within_rounding_is_a_near_tie_and_what_follows_a_consequence():
    expected, actual = masks("xx..", "xx.x", "x..x"), masks("x...", "x.xx", "x.xx")
    margin = np.where(expected, 1.0, -1.0)
    margin[:, :, 0] = np.inf
    margin[0, 0, 1] = 0.05
    first, second, third = compare(actual, expected, margin)
    assert first == GateFlips(4, flips=1, near_ties=1, consequences=0, largest_margin=0.05)
    assert second == GateFlips(4, flips=0, near_ties=0, consequences=2, largest_margin=0)
    assert third.consequences == 1
    assert (first.faults, second.faults) == (0, 0)
    assert (first.agreement, second.agreement) == (0.75, 0.5)


def test_images_do_not_excuse_each_other():
    expected = np.concatenate([masks("xx", "xx")] * 2)
    actual = np.concatenate([masks("x.", "xx"), masks("xx", "x.")])
    margin = np.where(np.arange(2) == 0, np.inf, 0.5) * np.ones((2, 2, 2))
    first, second = compare(actual, expected, margin)
    assert (first.faults, second.faults, second.consequences) == (1, 1, 0)


def test_pruning_a_token_that_is_always_kept_is_a_fault_at_any_margin():
    expected, actual = masks("xx"), masks(".x")
    margin = np.zeros((1, 1, 2))
    (flips,) = compare(actual, expected, margin)
    assert (flips.faults, flips.near_ties) == (1, 0)
    (flips,) = compare(actual, expected, margin, class_token=(True,))
    assert (flips.faults, flips.near_ties) == (0, 1)


@given(
    arrays.arrays(bool, (4, 3, 5)),
    arrays.arrays(bool, (4, 3, 5)),
    arrays.arrays(np.float64, (4, 3, 5), elements=st.floats(0, 2)),
    arrays.arrays(bool, 3),
)
def test_every_difference_is_counted_once(actual, expected, distance, class_token):
    config, rounding = svit(5, *class_token.tolist()), np.array([0.0, 0.5, 1.0])
    found = compare_masks(actual, expected, distance, rounding, config)
    different = actual != expected
    for gate, flips in enumerate(found):
        assert flips.flips + flips.consequences == different[:, gate].sum()
        assert 0 <= flips.near_ties <= flips.flips
        assert flips.agreement == pytest.approx(1 - different[:, gate].mean())
        earlier = different[:, :gate].any(axis=(1, 2))
        assert flips.consequences == different[earlier, gate].sum()
        fresh = different[~earlier, gate]
        explained = fresh & (distance[~earlier, gate] <= rounding[gate])
        explained[:, : config.first_gated(gate)] = False
        assert flips.near_ties == explained.sum()
        reached = distance[~earlier, gate][fresh]
        assert flips.largest_margin == (reached.max() if reached.size else 0)


def test_agreement_of_nothing():
    assert GateFlips(0, 0, 0, 0, 0.0).agreement == 1
