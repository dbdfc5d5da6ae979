"""What a benchmark runs, in which order, and what it refuses."""

import gc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svit_deploy.bench.settings import BenchSettings
from svit_deploy.bench.timing import compose_batches
from svit_deploy.errors import BenchmarkFailed, InputError, UsageError
from svit_deploy.progress import Progress

pytestmark = pytest.mark.slow


def test_blocks_are_interleaved_forwards_and_backwards_on_the_same_images(world):
    world.bench(world.dense(), world.pruned(), batches=(4,))
    before = 2 * (1 + 3 + 2)  # two cold starts, estimates and warm-ups
    timed = world.runs[before : before + 80]
    blocks = [timed[i : i + 4] for i in range(0, 80, 4)]
    orders = set()
    for number, block in enumerate(blocks):
        names = [name for name, _, _ in block]
        assert names == names[::-1]
        assert set(names) == {"dense", "pruned"}
        orders.add(tuple(names))
        batches = [batch for _, batch, _ in block]
        assert all(batch == batches[0] for batch in batches)
        assert batches[0] == compose_batches(20, 4, seed=0)[number % 5].tolist()
    assert len(orders) == 2


def test_timed_runs_ask_for_the_task_outputs_only(world):
    world.bench(world.pruned(), batches=(4,))
    asked = [outputs for _, _, outputs in world.runs]
    assert asked == [("logits",)] * (1 + 3 + 2 + 40) + [("keep_mask",)] * 5


def test_task_outputs_can_be_named(world):
    world.bench(world.dense(task_outputs=("logits", "keep_mask")))
    assert {outputs for _, _, outputs in world.runs} == {("logits", "keep_mask")}


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 5))
def test_batches_hold_distinct_images_and_use_all_of_them(batch, more, seed):
    count = batch + more
    index = compose_batches(count, batch, seed)
    assert index.shape == (-(-count // batch), batch)
    assert all(len(set(chosen)) == batch for chosen in index.tolist())
    assert set(index.ravel().tolist()) == set(range(count))


def test_the_seed_decides_the_order():
    assert (compose_batches(50, 5, 1) == compose_batches(50, 5, 1)).all()
    assert (compose_batches(50, 5, 1) != compose_batches(50, 5, 2)).any()


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"min_samples": 662}, 662),
        ({"min_samples": 7}, 12),  # a bootstrap needs 6 blocks
        ({"min_samples": 7, "duration_s": 1}, 100),
    ],
)
def test_runs_until_both_the_duration_and_the_samples_are_reached(world, settings, count):
    (result,) = world.bench(world.dense(), **settings).results
    assert result.latency.count == count
    assert result.samples_ms.shape == (count // 2, 2)


def test_warm_up_lasts_as_asked_and_is_not_counted(world):
    report = world.bench(world.dense(), warmup_s=0.5)
    assert len(world.runs) == 1 + 3 + 50 + 40
    assert report.results[0].latency.count == 40


def test_garbage_collector_rests_while_timing_and_comes_back(world):
    seen = []

    def cost_ms(kept: float) -> float:
        seen.append(gc.isenabled())
        if len(seen) == 23:
            raise KeyboardInterrupt
        return 1

    with pytest.raises(KeyboardInterrupt):
        world.bench(world.dense(cost_ms))
    assert seen == [True] * 6 + [False] * 17
    assert gc.isenabled()
    assert not world.open


def test_engines_are_closed_in_the_end(world):
    world.bench(world.dense(), world.pruned(), worst_case=True, sweep=True)
    assert not world.open


def test_cold_start_is_apart(world):
    (info,) = world.bench(world.dense()).targets
    assert (info.cold_start.load_ms, info.cold_start.first_inference_ms) == (50, 10)
    assert info.engine == {"runtime": "fake"}


def test_progress_grows_to_the_end(world):
    class Recorder(Progress):
        def __init__(self):
            self.shares = []

        def update(self, description, fraction):
            self.shares.append(fraction)

    recorder = Recorder()
    targets = world.dense(), world.pruned()
    world.bench(*targets, progress=recorder, batches=(1, 2), sweep=True)
    assert recorder.shares == sorted(recorder.shares)
    assert recorder.shares[-1] == 1


def test_limits_hold_for_the_candidates(world):
    report = world.bench(
        world.dense(), world.pruned(lambda kept: 9), fail_above={"p50": 8, "mean": 9.5}
    )
    assert report.failures == ("pruned, batch 1: p50 is 9.00 ms, above 8 ms",)
    with pytest.raises(BenchmarkFailed, match="above 8 ms"):
        report.raise_for_failures()
    assert report.to_dict()["status"]["verdict"] == "failed"


def test_a_percentile_that_cannot_be_claimed_is_a_failure(world):
    report = world.bench(world.dense(), fail_above={"p99": 100})
    assert report.failures == ("dense, batch 1: p99 needs 662 runs, not 40",)


def test_an_unstable_run_fails_only_on_request(world):
    noise = np.random.default_rng(0)

    def noisy(kept: float) -> float:
        return 10 + 2 * noise.random()

    world.bench(world.dense(noisy)).raise_for_failures()
    report = world.bench(world.dense(noisy), require_stable=True)
    with pytest.raises(BenchmarkFailed, match="unstable: the runs spread by"):
        report.raise_for_failures()


def test_a_batch_is_never_filled_with_copies(world):
    with pytest.raises(InputError, match=r"20 images cannot fill a batch of 32.*lower --batch"):
        world.bench(world.dense(), batches=(1, 32))
    assert not world.runs


def test_targets_must_be_comparable(world):
    with pytest.raises(InputError, match=r"different numbers of images: \[20, 10\]"):
        world.bench(world.pruned(), world.dense(count=10))
    with pytest.raises(UsageError, match="own label"):
        world.bench(world.dense(), world.dense())
    with pytest.raises(UsageError, match="one or more"):
        world.bench()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batches": ()}, "batch sizes"),
        ({"batches": (1, 0)}, "batch sizes"),
        ({"duration_s": -1}, "negative"),
        ({"fail_above": {"p95": 3}}, "limit one of mean, p50"),
        ({"fail_above": {"p99": 0}}, "positive number"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(UsageError, match=message):
        BenchSettings(**settings)
