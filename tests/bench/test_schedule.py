"""How long a benchmark takes: told before, held under a limit, short on request."""

from __future__ import annotations

import logging
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svit_deploy.bench.durations import QUICK, Timing
from svit_deploy.bench.schedule import Phase, Schedule, in_words, least_rounds
from svit_deploy.bench.settings import BenchSettings
from svit_deploy.bench.stats import MIN_BLOCKS
from svit_deploy.errors import UsageError
from tests.bench.conftest import World

pytestmark = pytest.mark.slow

LONG = {"warmup_s": 1, "duration_s": 5, "min_samples": 64}


def seconds(world: World) -> float:
    return world.now_ns / 1e9


def test_a_limit_stops_at_a_whole_round_and_the_report_says_so(world):
    report = world.bench(world.dense(), world.dense(label="other"), max_time_s=4.0, **LONG)
    assert 3 < seconds(world) <= 4
    for result in report.results:
        assert result.rounds >= MIN_BLOCKS
        assert result.latency.count == 2 * result.rounds
        # A round takes 40 ms; five seconds of each engine were asked for.
        assert result.rounds + result.rounds_left == 250
    names = [name for name, _, _ in world.runs]
    assert names.count("dense") == names.count("other")
    plain = report.to_dict()
    assert plain["settings"]["max_time_s"] == 4.0
    assert plain["elapsed_s"] == pytest.approx(seconds(world), abs=1e-3)
    assert plain["results"][0]["rounds_left"] == report.results[0].rounds_left


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(st.floats(2, 20), st.sampled_from([(1,), (1, 3), (5, 2, 1)]), st.booleans())
def test_a_limit_holds_for_all_phases_together(limit, batches, sweep):
    world = World()
    targets = world.dense(lambda kept: 150), world.pruned(lambda kept: 40 + 10 * kept)
    options = {"batches": batches, "worst_case": True, "sweep": sweep, **LONG}
    try:
        report = world.bench(*targets, max_time_s=limit, **options)
    except UsageError as error:
        assert "--max-time leaves" in error.message
    else:
        assert seconds(world) <= limit
        assert all(result.rounds >= MIN_BLOCKS for result in report.results)


@pytest.mark.slow
def test_what_comes_last_has_its_share_of_the_time(world):
    report = world.bench(world.dense(), batches=(1, 2, 4), max_time_s=6.0, **LONG)
    rounds = [result.rounds for result in report.results]
    assert min(rounds) > 0.7 * max(rounds)


@pytest.mark.slow
def test_a_limit_that_is_never_reached_changes_nothing():
    results = []
    for limit in (None, 1000.0):
        world = World()
        report = world.bench(world.dense(), world.pruned(), max_time_s=limit, worst_case=True)
        assert not any(result.rounds_left for result in report.results)
        results.append((world.runs, seconds(world)))
    assert results[0] == results[1]


def test_variants_that_no_time_is_left_for_are_named(world):
    slow = world.pruned(lambda kept: 4 + 100 * (kept == 10))  # only the worst case is slow
    report = world.bench(world.dense(), slow, worst_case=True, max_time_s=1.2, **LONG)
    result = report.results[1]
    assert result.worst_case is None
    assert result.notes[-1] == "not timed for want of time (--max-time): worst-case"
    assert seconds(world) <= 1.2


def test_variants_that_are_cut_short_are_named(world):
    report = world.bench(world.dense(), world.pruned(), worst_case=True, max_time_s=4.0, **LONG)
    result = report.results[1]
    assert result.worst_case.latency.count >= 2 * MIN_BLOCKS
    assert "rounds left out by --max-time: worst-case" in result.notes[-1]


def test_a_limit_below_the_fewest_rounds_is_refused_with_what_is_needed(world):
    with pytest.raises(UsageError) as caught:
        world.bench(world.dense(lambda kept: 1000), max_time_s=5.0)
    assert caught.value.message == (
        "--max-time leaves 0.95 s, and the fewest rounds that tell anything take up to 18 s"
    )
    assert caught.value.fix.startswith("give 17 s more, fewer targets")
    assert not world.open


def test_the_time_is_told_before_it_starts(world, caplog):
    caplog.set_level(logging.INFO)
    world.bench(world.dense(), batches=(1, 2), **LONG)
    (told,) = caplog.messages
    assert told == "measuring takes about 12 s"
    assert seconds(world) == pytest.approx(12, abs=0.3)


def test_a_long_run_is_told_how_to_shorten_it(world, caplog):
    caplog.set_level(logging.INFO)
    world.bench(world.dense(lambda kept: 2000), min_samples=64)
    assert caplog.messages == [
        "measuring takes about 2 min 12 s; --max-time limits it, --quick gives a first idea"
    ]
    assert seconds(world) == pytest.approx(132, abs=10)


def test_quick_is_a_few_rounds_and_says_that_it_is_none_to_publish(world):
    report = world.bench(world.dense(), quick=True, **LONG)
    assert report.results[0].rounds == MIN_BLOCKS
    assert seconds(world) < 1
    assert any("not a figure to publish" in note for note in report.notes)
    told = report.to_dict()["settings"]
    assert told["quick"] is True
    assert (told["warmup_s"], told["duration_s"], told["min_samples"]) == (0.2, 0, 12)
    assert not any("publish" in note for note in world.bench(world.dense()).notes)


def test_quick_is_the_fewest_rounds_with_an_interval():
    assert least_rounds(QUICK) == MIN_BLOCKS
    assert QUICK.min_samples == 2 * MIN_BLOCKS


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"quick": True, "duration_s": 1.0}, "--quick says how long to measure"),
        ({"quick": True, "min_samples": 662}, "--quick says how long to measure"),
        ({"max_time_s": 0.0}, "--max-time leaves no time"),
    ],
)
def test_settings_that_contradict(given, words):
    with pytest.raises(UsageError, match=words):
        BenchSettings(**given)


def test_shares_of_the_time_add_up():
    now = 0
    phases = [Phase((0.01, 0.02), 10), Phase((0.1,), 5, 0.1), Phase((0.5, 0.5), 1, load_s=2)]
    schedule = Schedule(phases, Timing(), lambda: now, limit_ns=30e9)
    ends = []
    for number in range(len(phases)):
        now = schedule.until(number)
        ends.append(now / 1e9)
    assert ends == sorted(ends)
    assert ends[-1] == pytest.approx(30)
    assert Schedule(phases, Timing(), lambda: 0).until(0) == math.inf


@pytest.mark.parametrize(
    ("given", "words"), [(0.5, "0.5 s"), (42.4, "42 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s")]
)
def test_durations_in_words(given, words):
    assert in_words(given) == words
