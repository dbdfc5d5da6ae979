"""Budgets: rows that a gate lets through of images of any size."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from svit_deploy.model.budget import UNIT, Budget, budgets_of, rows_within
from svit_deploy.model.config import ModelConfig

counts = st.builds(Budget, st.integers(1, 10**6), always=st.integers(0, 2))
units = st.integers(1, UNIT)
TOKENS = st.integers(1, 10**7)


@given(counts, TOKENS)
def test_a_count_is_the_same_for_every_image(budget: Budget, tokens: int) -> None:
    assert budget.share is None
    assert budget.rows(tokens) == budget.value + budget.always


@given(units, TOKENS)
def test_a_share_is_rounded_up(unit: int, tokens: int) -> None:
    """In whole numbers, as the graph computes it: no image loses a token to rounding."""
    rows = Budget(unit / UNIT).rows(tokens)
    exact = Fraction(unit, UNIT) * tokens
    assert exact <= rows < exact + 1
    assert 1 <= rows <= tokens


@given(units, TOKENS, st.integers(0, 1000))
def test_a_larger_image_keeps_no_less(unit: int, tokens: int, more: int) -> None:
    assert Budget(unit / UNIT).rows(tokens + more) >= Budget(unit / UNIT).rows(tokens)


def test_everything_is_a_share_too() -> None:
    assert Budget(1.0).rows(950) == 950
    assert Budget(1).rows(950) == 1


def test_what_a_gate_can_have() -> None:
    assert Budget(1).fits(4) and Budget(4, always=1).fits(4) and not Budget(5).fits(4)
    assert not Budget(0).fits(4) and not Budget(-1).fits(4)
    assert Budget(1.0).fits(4) and Budget(1e-4).fits(4)
    assert not any(Budget(value).fits(4) for value in (0.0, -0.5, 1.0001, 2.0))


def test_budgets_of_a_model_know_what_its_gates_always_keep() -> None:
    config = ModelConfig(
        "svit", 4, 2, 1, 8, 1, 2, (2, 2), (2, 2), False, (0, 1), (False, True)
    )  # the first gate always keeps the class token, the second decides on it
    budgets = budgets_of(config, [3, 2])
    assert budgets == (Budget(3, always=1), Budget(2))
    assert np.array_equal(rows_within(budgets, config.num_tokens), [4, 2])
    assert rows_within((), config.num_tokens) is None
    assert budgets_of(config, []) == ()
