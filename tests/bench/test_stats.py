"""Latency statistics: known values, and properties for any samples."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from svit_deploy.bench.stats import (
    MIN_BLOCKS,
    fit_latency,
    percentile_floor,
    ratio_interval,
    repeat_cv,
    summarise,
)

untimed = settings(deadline=None)
LATENCY = st.floats(1e-3, 1e3)
SAMPLES = hnp.arrays(np.float64, st.integers(1, 80), elements=LATENCY)
PAIRS = st.integers(MIN_BLOCKS, 12).flatmap(
    lambda blocks: st.tuples(*[hnp.arrays(np.float64, (blocks, 2), elements=LATENCY)] * 2)
)


def test_percentile_floors_are_those_of_mlperf():
    assert (percentile_floor(90), percentile_floor(99)) == (64, 662)


@untimed
@given(st.floats(50, 99), st.floats(50, 99))
def test_percentile_floor_grows_towards_the_tail(p, q):
    p, q = sorted((p, q))
    assert 2 <= percentile_floor(p) <= percentile_floor(q)
    assert percentile_floor(p) == pytest.approx(percentile_floor(100 - p), abs=1)


@pytest.mark.parametrize("p", [0, 100, -1, math.nan])
def test_percentile_floor_refuses_what_is_no_percentile(p):
    with pytest.raises(ValueError, match="outside"):
        percentile_floor(p)


def test_summary_of_known_samples():
    summary = summarise([4.0, 2.0, 2.0, 3.0, 4.0, 9.0])
    assert (summary.count, summary.mean_ms, summary.p50_ms) == (6, 4.0, 3.5)
    assert (summary.min_ms, summary.max_ms) == (2.0, 9.0)
    assert summary.cv == pytest.approx(math.sqrt(34 / 6) / 4)
    assert summary.drift == pytest.approx(6.5 / 3 - 1)


@pytest.mark.parametrize(
    ("count", "p90", "p99"), [(63, 0, 0), (64, 1, 0), (661, 1, 0), (662, 1, 1)]
)
def test_percentiles_only_where_the_samples_allow_the_claim(count, p90, p99):
    summary = summarise(np.linspace(1, 2, count))
    assert (summary.p90_ms is not None, summary.p99_ms is not None) == (bool(p90), bool(p99))


@untimed
@given(SAMPLES)
def test_summary_is_ordered(samples):
    summary = summarise(samples)
    assert summary.min_ms <= summary.p50_ms <= summary.max_ms
    assert summary.min_ms <= summary.mean_ms * (1 + 1e-12)
    assert summary.mean_ms <= summary.max_ms * (1 + 1e-12)
    if summary.p90_ms is not None:
        assert summary.p50_ms <= summary.p90_ms <= summary.max_ms
    assert summary.cv >= 0
    assert summary.drift > -1


@untimed
@given(SAMPLES, st.integers(-8, 8))
def test_summary_scales_with_the_unit(samples, exponent):
    unit = 2.0**exponent
    one, other = summarise(samples), summarise(samples * unit)
    assert other.p50_ms == pytest.approx(one.p50_ms * unit)
    assert other.mean_ms == pytest.approx(one.mean_ms * unit)
    assert other.cv == pytest.approx(one.cv, abs=1e-9)
    assert other.drift == pytest.approx(one.drift)


@untimed
@given(SAMPLES, st.randoms())
def test_only_the_drift_depends_on_the_order(samples, random):
    shuffled = samples.copy()
    random.shuffle(shuffled)
    one, other = summarise(samples), summarise(shuffled)
    assert (one.p50_ms, one.p90_ms, one.max_ms) == (other.p50_ms, other.p90_ms, other.max_ms)
    assert one.cv == pytest.approx(other.cv)


@pytest.mark.parametrize("samples", [[], [0.0], [1.0, -1.0], [math.nan], [math.inf]])
def test_summary_refuses_what_no_clock_says(samples):
    with pytest.raises(ValueError, match="positive"):
        summarise(samples)


def test_repeat_cv_ignores_differences_between_images():
    assert repeat_cv([[1.0, 1.0], [9.0, 9.0]]) == 0
    assert repeat_cv([[1.0, 3.0]]) == pytest.approx(math.sqrt(2) / 2)


def test_ratio_of_a_faster_candidate():
    noise = np.random.default_rng(0).normal(1, 0.02, (40, 2))
    interval = ratio_interval(20 * noise, 10 * noise[::-1])
    assert interval.low < 2 < interval.high
    assert interval.high - interval.low < 0.1
    assert interval.verdict == "faster"
    assert ratio_interval(10 * noise, 20 * noise).verdict == "slower"


def test_noise_is_no_difference():
    rng = np.random.default_rng(0)
    interval = ratio_interval(rng.normal(10, 1, (30, 2)), rng.normal(10, 1, (30, 2)))
    assert interval.no_measurable_difference
    assert interval.verdict == "no measurable difference"


def test_pairing_removes_what_slowed_a_whole_block():
    machine = np.random.default_rng(0).uniform(1, 3, (30, 1)) * np.ones((1, 2))
    interval = ratio_interval(1.1 * machine, machine)
    assert interval.low == pytest.approx(1.1)
    assert interval.high == pytest.approx(1.1)


@pytest.mark.slow
def test_a_long_disturbance_is_one_event_not_many():
    rng = np.random.default_rng(0)
    baseline, candidate = rng.normal(10, 1, (2, 4000, 2))
    baseline[3000:3400] += 4  # another program ran meanwhile, and hit one side only
    assert ratio_interval(baseline, candidate).no_measurable_difference


def test_less_than_two_loads_of_one_model_differ_is_no_difference():
    exact = np.ones((10, 2))
    assert ratio_interval(1.015 * exact, exact).no_measurable_difference
    assert ratio_interval(exact, 1.015 * exact).no_measurable_difference
    assert ratio_interval(1.03 * exact, exact).verdict == "faster"


@pytest.mark.slow
@untimed
@given(PAIRS, st.integers(0, 9))
def test_interval_holds_the_ratio_and_swaps_to_its_reciprocal(pair, seed):
    baseline, candidate = pair
    interval = ratio_interval(baseline, candidate, seed=seed, resamples=40)
    assert 0 < interval.low <= interval.ratio <= interval.high
    assert interval == ratio_interval(baseline, candidate, seed=seed, resamples=40)
    swapped = ratio_interval(candidate, baseline, seed=seed, resamples=40)
    assert swapped.ratio == pytest.approx(1 / interval.ratio)
    assert swapped.low == pytest.approx(1 / interval.high)
    assert swapped.high == pytest.approx(1 / interval.low)


@pytest.mark.slow
@untimed
@given(PAIRS, st.integers(-8, 8))
def test_ratio_has_no_unit(pair, exponent):
    one = ratio_interval(*pair, resamples=40)
    other = ratio_interval(*(side * 2.0**exponent for side in pair), resamples=40)
    assert other.ratio == pytest.approx(one.ratio)
    assert (other.low, other.high) == pytest.approx((one.low, one.high))


@pytest.mark.slow
@untimed
@given(PAIRS)
def test_a_wider_confidence_gives_a_wider_interval(pair):
    narrow = ratio_interval(*pair, resamples=40, confidence=0.5)
    wide = ratio_interval(*pair, resamples=40, confidence=0.95)
    assert wide.low <= narrow.low * (1 + 1e-12)
    assert wide.high >= narrow.high * (1 - 1e-12)


@pytest.mark.parametrize("blocks", [(MIN_BLOCKS - 1, MIN_BLOCKS - 1), (10, 11)])
def test_ratio_needs_enough_paired_blocks(blocks):
    with pytest.raises(ValueError, match="blocks"):
        ratio_interval(*(np.ones((count, 2)) for count in blocks))


@untimed
@given(st.floats(-10, 10), st.floats(-10, 10), st.sets(st.integers(0, 100), min_size=2))
def test_fit_recovers_a_line(a, b, percents):
    kept = np.array(sorted(percents)) / 100
    assert fit_latency(kept, a + b * kept) == pytest.approx((a, b), abs=1e-6)


def test_fit_of_one_keep_ratio_has_no_slope():
    assert fit_latency([0.5, 0.5], [1.0, 3.0]) == (2.0, 0.0)
    with pytest.raises(ValueError, match="cannot fit"):
        fit_latency([], [])
