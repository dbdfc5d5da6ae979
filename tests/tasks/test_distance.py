"""How far two results are apart: relative to what, and what no error can hide behind."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from svit_deploy.tasks.distance import logits_error, margin_error, token_error

ERRORS = pytest.mark.parametrize("error", [token_error, margin_error, logits_error])
VECTORS = arrays.arrays(np.float32, (3, 4), elements=st.floats(-1e4, 1e4, width=32))


@ERRORS
@given(expected=VECTORS)
def test_no_error_without_a_difference(error, expected):
    assert error(expected, expected) == 0
    assert error(expected[:0], expected[:0]) == 0


@ERRORS
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_an_infinite_error(error, broken):
    expected = np.ones((2, 3), np.float32)
    actual = expected.copy()
    actual[1, 1] = broken
    assert error(actual, expected) == np.inf
    assert error(expected, actual) > 0


@given(VECTORS, st.floats(1e-6, 0.1))
def test_token_error_is_relative_to_each_token(expected, error):
    """One token's large values hide nothing in another."""
    expected[:, 0] = 1
    actual = expected.astype(np.float64)
    actual[1] *= 1 + error
    assert token_error(actual, expected) == pytest.approx(error, rel=1e-6)


def test_margin_error():
    expected = np.array([[np.inf, 1.0, -2.0]], np.float32)
    assert margin_error(expected + np.float32(0.25), expected) == 0.25
    assert margin_error(np.array([[3.0, 1.0, -2.0]]), expected) == np.inf
    assert margin_error(expected, np.array([[3.0, 1.0, -2.0]])) == np.inf


def test_logits_error_is_relative_to_large_logits_only():
    small, large = np.full((1, 4), 0.1), np.full((1, 4), 10.0)
    assert logits_error(small + 0.02, small) == pytest.approx(0.02)
    assert logits_error(large + 0.02, large) == pytest.approx(0.002)
