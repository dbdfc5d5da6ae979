"""Which points are on the front, which one is chosen, and what is said where none is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svit_deploy.errors import UsageError
from svit_deploy.tune.choice import Limits, Point, choose, nearest_miss, pareto_front
from svit_deploy.tune.settings import LatencyBudget, parse_latency, parse_share


def point(name: str, ms: float, quality: float, *, batch: int = 1, **more: float | bool) -> Point:
    latency = {"mean": ms, "p50": ms, "p90": more.pop("p90", None), "p99": None, "max": 2 * ms}
    eligible = bool(more.pop("eligible", True))
    assert not more
    return Point(name, 0, batch, latency, quality, 0.99 - quality, eligible)  # type: ignore[arg-type]


BASE = point("base", 10, 0.99)
LOSSY = point("lossy", 4, 0.97)
SLOWER_AND_WORSE = point("slower and worse", 5, 0.96)
SLIGHTLY = point("slightly", 6, 0.988)
SLOW = point("slow", 20, 0.985)
ALL = [BASE, LOSSY, SLOWER_AND_WORSE, SLIGHTLY, SLOW]


def test_what_is_slower_and_worse_is_not_on_the_front():
    assert pareto_front(ALL) == [LOSSY, SLIGHTLY, BASE]


def test_of_two_equally_good_the_faster_is_on_the_front():
    assert pareto_front([BASE, point("faster", 9, 0.99)]) == [point("faster", 9, 0.99)]


def test_batches_are_compared_by_the_image():
    together = point("of 8", 40, 0.97, batch=8)
    assert together.ms_per_image == 5
    assert pareto_front([together, SLIGHTLY]) == [together, SLIGHTLY]
    assert pareto_front([together, LOSSY]) == [LOSSY]


points = st.builds(
    point, st.just("any"), st.floats(0.1, 100), st.floats(0, 0.99), batch=st.sampled_from([1, 8])
)


@given(st.lists(points, min_size=1, max_size=8))
def test_every_point_is_on_the_front_or_dominated_by_one_that_is(drawn):
    front = pareto_front(drawn)
    assert all(one in front or any(f.dominates(one) for f in front) for one in drawn)
    assert not any(one.dominates(other) for one in front for other in front)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(1.0), LOSSY),
        (Limits(0.005), SLIGHTLY),
        (Limits(0.002), SLIGHTLY),  # 0.99 - 0.988, which floats make a little more
        (Limits(0.001), BASE),
        (Limits(0.005, LatencyBudget(12)), BASE),  # the most accurate in time
        (Limits(0.005, LatencyBudget(9)), SLIGHTLY),
        (Limits(0.005, LatencyBudget(5)), None),
        (Limits(1.0, LatencyBudget(5)), LOSSY),
        (Limits(1.0, LatencyBudget(12, "max")), SLIGHTLY),
        (Limits(1.0, LatencyBudget(100, "p99")), None),
    ],
)
def test_what_is_chosen(limits, expected):
    assert choose(ALL, limits) is expected


def test_the_base_may_stand_outside_of_what_is_asked_for():
    outside = point("base", 1, 0.99, eligible=False)
    assert choose([outside, LOSSY], Limits(1.0)) is LOSSY
    assert Limits(1.0).refusal(outside) == "not among those asked for"


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(0.005, LatencyBudget(5)), "slightly, batch 1 comes nearest with a p50 of 6 ms"),
        (Limits(1.0, LatencyBudget(3)), "lossy, batch 1 comes nearest with a p50 of 4 ms"),
        (Limits(1.0, LatencyBudget(3, "p99")), "too few to tell the p99"),
    ],
)
def test_the_nearest_is_named(limits, words):
    assert words in nearest_miss(ALL, limits)


def test_the_least_loss_is_named():
    said = nearest_miss([LOSSY, SLOWER_AND_WORSE], Limits(0.005))
    assert said == "lossy, batch 1 comes nearest and loses 2.00%"


def test_refusals_are_in_words():
    limits = Limits(0.005, LatencyBudget(5, "p90"))
    assert limits.refusal(LOSSY) == "loses 2.00%, more than 0.50%"
    assert limits.refusal(BASE) == "too few runs to tell its p90"
    assert limits.refusal(point("a", 4, 0.99, p90=7)) == "p90 7 ms, above 5 ms"
    assert limits.refusal(point("a", 4, 0.99, p90=5)) is None


@pytest.mark.parametrize(("text", "share"), [("0.5%", 0.005), ("0", 0), ("0.01", 0.01), ("1", 1)])
def test_shares(text, share):
    assert parse_share(text, "--x") == share


@pytest.mark.parametrize("text", ["", "%", "0.5%%", "-1%", "101%", "nan", "2", "x"])
def test_no_shares(text):
    with pytest.raises(UsageError, match="--x"):
        parse_share(text, "--x")


@pytest.mark.parametrize(
    ("text", "ms", "statistic"),
    [("20ms", 20, "p50"), ("0.1s", 100, "p50"), ("p90=2ms", 2, "p90"), (" max=1s", 1000, "max")],
)
def test_latencies(text, ms, statistic):
    assert parse_latency(text, "--x") == LatencyBudget(pytest.approx(ms), statistic)


@pytest.mark.parametrize("text", ["20", "p90=20", "p95=1ms", "0ms", "-1ms", "ms", "", "=1ms"])
def test_no_latencies(text):
    with pytest.raises(UsageError, match="--x"):
        parse_latency(text, "--x")
