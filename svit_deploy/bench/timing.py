"""The timed loop of a benchmark: loaded engines in, milliseconds out."""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from svit_deploy.bench.durations import Timing
from svit_deploy.bench.schedule import RUNS, Schedule, least_rounds
from svit_deploy.bench.stats import MIN_BLOCKS
from svit_deploy.engines.base import Engine, RunTimes
from svit_deploy.progress import SILENT, Progress

WARMING = 0.2
"""Most of a phase's time under a limit that goes to warming up."""


@dataclass(frozen=True, eq=False)
class Lane:
    """A loaded engine, the images it runs on and the outputs the timed runs ask for.

    Attributes:
        keep_output: the output with its keep mask, if that is read after the timed runs.
        times: where the time of the last phase's timed runs went, if the engine can tell.
    """

    label: str
    engine: Engine
    input_name: str
    images: np.ndarray
    outputs: tuple[str, ...]
    keep_output: str | None = None
    times: list[RunTimes] = field(default_factory=list)

    def feeds(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """One batch: a contiguous copy of the images numbered `chosen` `[B]`."""
        return {self.input_name: self.images[chosen]}


@dataclass(frozen=True, eq=False)
class Timed:
    """What a phase measured.

    Attributes:
        samples_ms: float64 `[lanes, rounds, 2]`, in the order they were taken.
        left: rounds that a time limit left out.
    """

    samples_ms: np.ndarray
    left: int = 0

    @property
    def rounds(self) -> int:
        return self.samples_ms.shape[1]


def compose_batches(count: int, batch: int, seed: int) -> np.ndarray:
    """Numbers of the images in each batch, int `[ceil(count / batch), batch]`.

    Every image is used, a batch never holds one twice (`batch <= count`), the order is random.
    """
    order = np.random.default_rng(seed).permutation(count)
    return np.resize(order, (-(-count // batch), batch))


def run_seconds(
    lane: Lane, index: np.ndarray, clock: Callable[[], int] = time.perf_counter_ns
) -> float:
    """Seconds of a run on one batch: the mean of two after one that makes room for its shapes."""
    taken = []
    for number in range(1 + RUNS):
        feeds, start = lane.feeds(index[number % len(index)]), clock()
        lane.engine.run(feeds, lane.outputs)
        taken.append(clock() - start)
    return max(sum(taken[1:]) / RUNS, 1) / 1e9


@dataclass
class Timer:
    """Times lanes against each other and tells the progress of all phases of its schedule.

    `watch` gives a context that is open during the timed runs.
    """

    timing: Timing
    schedule: Schedule
    seed: int = 0
    clock: Callable[[], int] = time.perf_counter_ns
    progress: Progress = SILENT
    watch: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    _phase: int = 0

    def time(
        self, lanes: Sequence[Lane], index: np.ndarray, description: str, *, optional: bool = False
    ) -> Timed:
        """Warms the lanes up, then runs them in interleaved rounds.

        Round i runs every lane on batch `index[i % len(index)]`, in a random order and then in
        that order reversed.

        Args:
            lanes: the engines to compare.
            index: image numbers `[batches, B]` from `compose_batches`.
            description: of this phase, for the progress.
            optional: whether to time nothing where a limit leaves no room for the fewest rounds;
                else these are timed all the same.
        """
        until = self.schedule.until(self._phase)
        share_s = WARMING * (until - self.clock()) / 1e9 / len(lanes)
        run_ns = np.zeros(len(lanes))
        for i, lane in enumerate(lanes):
            self._tell(f"{description}: warming up {lane.label}", 0)
            run_ns[i] = self._warm_up(lane, index, min(self.timing.warmup_s, share_s))
            lane.times.clear()
        wanted, budget_ns = least_rounds(self.timing), self.timing.duration_s * 1e9 * len(lanes)
        rng = np.random.default_rng(self.seed)
        description = f"{description}: timing {', '.join(lane.label for lane in lanes)}"
        masked = np.array([lane.keep_output is not None for lane in lanes])
        taken: list[list[list[int]]] = []
        spent_ns, longest_ns, left = np.zeros(len(lanes)), RUNS * run_ns.sum(), 0
        with self.watch(), _garbage_collector_paused():
            while (rounds := len(taken)) < wanted or spent_ns.sum() < budget_ns:
                ahead = 1 if rounds >= MIN_BLOCKS else MIN_BLOCKS if optional and not rounds else 0
                masks_ns = min(rounds + ahead, len(index)) * run_ns[masked].sum()
                if ahead and self.clock() + ahead * longest_ns + masks_ns > until:
                    left = max(wanted, math.ceil(budget_ns / (RUNS * run_ns.sum()))) - rounds
                    break
                taken.append(self._round(lanes, index[rounds % len(index)], rng))
                round_ns = np.sum(taken[-1], axis=1)
                longest_ns = max(longest_ns, round_ns.sum())
                spent_ns += round_ns
                run_ns = spent_ns / (RUNS * len(taken))
                share = spent_ns.sum() / budget_ns if budget_ns else 1
                self._tell(description, min(len(taken) / wanted, share, 1))
        self._phase += 1
        samples = np.array(taken, np.float64).reshape(len(taken), len(lanes), RUNS)
        return Timed(samples.transpose(1, 0, 2) / 1e6, left)

    def _round(
        self, lanes: Sequence[Lane], chosen: np.ndarray, rng: np.random.Generator
    ) -> list[list[int]]:
        """Nanoseconds `[lanes][2]` of one A B B A round on one batch."""
        feeds = [lane.feeds(chosen) for lane in lanes]
        order = rng.permutation(len(lanes)).tolist()
        taken: list[list[int]] = [[] for _ in lanes]
        for i in order + order[::-1]:
            lane = lanes[i]
            start = self.clock()
            lane.engine.run(feeds[i], lane.outputs)
            taken[i].append(self.clock() - start)
            if (times := lane.engine.last_times) is not None:
                lane.times.append(times)
        return taken

    def _warm_up(self, lane: Lane, index: np.ndarray, warmup_s: float) -> float:
        """Runs for a time, at least twice, over batches in turn (their shapes differ).

        Returns:
            Nanoseconds of a run.
        """
        start, runs = self.clock(), 0
        while runs < RUNS or self.clock() - start < warmup_s * 1e9:
            lane.engine.run(lane.feeds(index[runs % len(index)]), lane.outputs)
            runs += 1
        return (self.clock() - start) / runs

    def _tell(self, description: str, share: float) -> None:
        phases = self.schedule.count
        self.progress.update(description, (self._phase + share) / phases)


@contextlib.contextmanager
def _garbage_collector_paused() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
