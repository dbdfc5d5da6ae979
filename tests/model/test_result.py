"""What a run computed: images taken out of a result and put together again."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svit_deploy.model.result import Result, Selected, stack

OPTIONAL = ("source", "lead", "overflow")


@st.composite
def results(draw: st.DrawFn) -> Result:
    """Results of some images, gates and tokens, with any of the optional arrays."""
    images, gates, tokens = (
        draw(st.integers(0, 5)),
        draw(st.integers(0, 3)),
        draw(st.integers(1, 4)),
    )
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = (images, gates, tokens)
    known = {
        "source": rng.integers(0, tokens, shape),
        "lead": rng.normal(size=shape).astype(np.float32),
        "overflow": rng.integers(0, 3, shape[:2]),
    }
    selected = Selected(
        rng.random(shape) < 0.5,
        rng.normal(size=shape).astype(np.float32),
        **{name: known[name] for name in OPTIONAL if draw(st.booleans())},
    )
    outputs = [
        {"logits": rng.normal(size=7), "boxes": rng.normal(size=(i, 4))} for i in range(images)
    ]
    stages = {"block_0.out": rng.normal(size=(images, tokens, 2))} if draw(st.booleans()) else {}
    return Result(outputs, selected, {"gate_0.margin": rng.normal(size=(images, tokens))}, stages)


def assert_same(actual: Result, expected: Result) -> None:
    assert len(actual) == len(expected)
    for mine, theirs in zip(actual.outputs, expected.outputs, strict=True):
        assert list(mine) == list(theirs)
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    for one in fields(Selected):
        mine, theirs = (getattr(result.selected, one.name) for result in (actual, expected))
        assert (mine is None) == (theirs is None), one.name
        assert mine is None or (mine.dtype == theirs.dtype and np.array_equal(mine, theirs))
    for name in ("values", "stages"):
        mine, theirs = getattr(actual, name), getattr(expected, name)
        assert list(mine) == list(theirs)
        assert all(np.array_equal(mine[key], theirs[key]) for key in mine)


@given(results(), st.integers(0, 5))
def test_parts_make_the_whole_again(result: Result, cut: int) -> None:
    parts = [result[:cut], result[cut:]]
    assert sum(map(len, parts)) == len(result)
    assert_same(Result.concatenate(parts), result)


@given(results(), st.data())
def test_images_are_taken_by_slices_masks_and_numbers_alike(
    result: Result, data: st.DataObject
) -> None:
    mask = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(result), max_size=len(result))), bool
    )
    numbers = np.flatnonzero(mask)
    assert_same(result[mask], result[numbers])
    for i in numbers:
        assert result[i : i + 1].outputs[0] is result.outputs[i]
        assert np.array_equal(
            result[i : i + 1].selected.keep_mask, result.selected.keep_mask[i : i + 1]
        )
    assert_same(result[:], result)


@given(results())
def test_decisions_are_what_became_of_tokens(result: Result) -> None:
    selected = result.selected
    if selected.source is None:
        assert selected.decisions is selected.keep_mask
    else:
        assert selected.decisions is selected.source


def test_nothing_is_selected_without_gates() -> None:
    nothing = Selected.nothing(3, 5)
    assert nothing.keep_mask.shape == nothing.margin.shape == (3, 0, 5)
    assert (nothing.keep_mask.dtype, nothing.margin.dtype) == (bool, np.float32)
    assert nothing[1:].keep_mask.shape == (2, 0, 5)
    assert all(getattr(nothing, name) is None for name in OPTIONAL)
    assert Selected.concatenate([nothing, nothing]).keep_mask.shape == (6, 0, 5)


def test_outputs_of_equal_shapes_stack() -> None:
    outputs = [{"logits": np.full(2, i), "boxes": np.zeros((i, 4))} for i in range(3)]
    assert stack(outputs, "logits").tolist() == [[0, 0], [1, 1], [2, 2]]
    with pytest.raises(ValueError, match="same shape"):
        stack(outputs, "boxes")
    with pytest.raises(KeyError):
        stack(outputs, "masks")
