"""Accuracy and its interval; intervals by resampling images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svit_deploy.errors import InputError
from svit_deploy.images.prepared import Prepared
from svit_deploy.tasks.accuracy import Accuracy, place_of
from svit_deploy.tasks.scores import (
    MIN_IMAGES,
    Measure,
    bootstrap_intervals,
    wilson_interval,
)


# Of R's prop.test(..., correct=FALSE), and of Newcombe, Statistics in Medicine 17 (1998), table I.
@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0000),
    ],
)
def test_wilson_interval_is_the_published_one(
    hits: int, count: int, low: float, high: float
) -> None:
    assert wilson_interval(hits, count) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share(case: tuple[int, int]) -> None:
    hits, count = case
    low, high = wilson_interval(hits, count)
    assert 0 <= low <= hits / count <= high <= 1
    assert low < high
    mirrored = wilson_interval(count - hits, count)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(("hits", "count"), [(0, 0), (-1, 3), (4, 3)])
def test_what_is_no_share(hits: int, count: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        wilson_interval(hits, count)


def test_a_class_has_a_place_among_the_logits() -> None:
    logits = np.array([1.0, 3.0, 3.0, -2.0, 0.5], np.float32)
    assert [place_of(label, logits) for label in range(5)] == [2, 0, 1, 4, 3]
    assert place_of(1, logits) == 0 == logits.argmax() - 1
    for broken in (np.nan, np.inf):
        logits[0] = broken
        assert place_of(1, logits) == 5


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9), st.data())
def test_the_first_place_is_argmax(values: list[int], data: Any) -> None:
    logits = np.array(values, np.float32)
    label = data.draw(st.integers(0, len(values) - 1))
    assert (place_of(label, logits) == 0) == (logits.argmax() == label)
    assert place_of(label, logits) == list(np.argsort(-logits, kind="stable")).index(label)


def image(label: int | None) -> Prepared:
    return Prepared.whole(np.zeros((3, 2, 2), np.float32), "x.png", label)


def test_accuracy_counts_images() -> None:
    scores = Accuracy(6)
    for label in (0, 1, 5):
        scores.add(image(label), {"logits": np.array([6, 5, 4, 3, 2, 1], np.float32)})
    assert scores.values() == {"top1_accuracy": 1 / 3, "top5_accuracy": 2 / 3}
    first, fifth = scores.measures(0, lambda _: None)
    assert (first.low, first.high) == wilson_interval(1, 3)
    assert str(fifth) == "top-5 accuracy 66.67% (95 % interval 20.77% to 93.85%)"
    with pytest.raises(InputError, match=r"x.png has no label"):
        scores.add(image(None), {"logits": np.zeros(6, np.float32)})


def test_fewer_than_five_classes_have_no_top_5() -> None:
    scores = Accuracy(4)
    scores.add(image(0), {"logits": np.zeros(4, np.float32)})
    assert scores.values() == {"top1_accuracy": 1.0}


def test_resampling_gives_the_interval_of_a_mean() -> None:
    values = np.random.default_rng(3).normal(2, 1, 400)
    told: list[float] = []

    def mean(weights: np.ndarray) -> dict[str, float]:
        assert weights.sum() == 400
        return {"mean": float(weights @ values / 400)}

    (low, high) = bootstrap_intervals(400, mean, 0, told.append)["mean"]
    exact = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx(
        (values.mean() - exact, values.mean() + exact), abs=0.1 * exact
    )
    assert bootstrap_intervals(400, mean, 0, told.append)["mean"] == (low, high)
    assert bootstrap_intervals(400, mean, 1, told.append)["mean"] != (low, high)
    assert bootstrap_intervals(MIN_IMAGES - 1, mean, 0, told.append) == {}
    assert told[0] == 0 and max(told) < 1


def test_a_measure_without_an_interval() -> None:
    assert str(Measure("box_ap", "box AP", 0.25)) == "box AP 0.2500"
