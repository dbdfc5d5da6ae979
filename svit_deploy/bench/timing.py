"""The timed loop of a benchmark: loaded engines in, milliseconds out."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from svit_deploy.bench.stats import MIN_BLOCKS
from svit_deploy.engines.base import Engine, RunTimes
from svit_deploy.progress import SILENT, Progress

RUNS = 2  # of each engine in a block


@dataclass(frozen=True, eq=False)
class Lane:
    """A loaded engine, the images it runs on and the outputs the timed runs ask for.

    `times` tells where the time of the last phase's timed runs went, if the engine can tell.
    """

    label: str
    engine: Engine
    input_name: str
    images: np.ndarray
    outputs: tuple[str, ...]
    times: list[RunTimes] = field(default_factory=list)

    def feeds(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """One batch: a contiguous copy of the images numbered `chosen` `[B]`."""
        return {self.input_name: self.images[chosen]}


def compose_batches(count: int, batch: int, seed: int) -> np.ndarray:
    """Numbers of the images in each batch, int `[ceil(count / batch), batch]`.

    Every image is used, a batch never holds one twice (`batch <= count`), the order is random.
    """
    order = np.random.default_rng(seed).permutation(count)
    return np.resize(order, (-(-count // batch), batch))


@dataclass
class Timer:
    """Times lanes against each other and tells the progress of all its `phases`.

    `watch` gives a context that is open during the timed runs.
    """

    warmup_s: float
    duration_s: float
    min_samples: int
    seed: int = 0
    clock: Callable[[], int] = time.perf_counter_ns
    progress: Progress = SILENT
    phases: int = 1
    watch: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    _phase: int = 0

    def time(self, lanes: Sequence[Lane], index: np.ndarray, description: str) -> np.ndarray:
        """Warms the lanes up, then runs them in interleaved blocks.

        Block i runs every lane on batch `index[i % len(index)]`, in a random order and then in
        that order reversed.

        Args:
            lanes: the engines to compare.
            index: image numbers `[batches, B]` from `compose_batches`.
            description: of this phase, for the progress.

        Returns:
            Milliseconds, float64 `[lanes, blocks, 2]`, in the order they were taken.
        """
        for lane in lanes:
            self._tell(f"{description}: warming up {lane.label}", 0)
            self._warm_up(lane, index)
            lane.times.clear()
        rng = np.random.default_rng(self.seed)
        blocks = max(MIN_BLOCKS, -(-self.min_samples // RUNS))
        budget_ns = self.duration_s * 1e9 * len(lanes)
        description = f"{description}: timing {', '.join(lane.label for lane in lanes)}"
        taken: list[list[list[int]]] = []
        spent_ns = 0
        with self.watch(), _garbage_collector_paused():
            while len(taken) < blocks or spent_ns < budget_ns:
                block = self._block(lanes, index[len(taken) % len(index)], rng)
                taken.append(block)
                spent_ns += sum(map(sum, block))
                share = spent_ns / budget_ns if budget_ns else 1
                self._tell(description, min(len(taken) / blocks, share, 1))
        self._phase += 1
        return np.array(taken).transpose(1, 0, 2) / 1e6

    def _block(
        self, lanes: Sequence[Lane], chosen: np.ndarray, rng: np.random.Generator
    ) -> list[list[int]]:
        """Nanoseconds `[lanes][2]` of one A B B A block on one batch."""
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

    def _warm_up(self, lane: Lane, index: np.ndarray) -> None:
        """Runs for `warmup_s`, at least twice, over batches in turn (their shapes differ)."""
        start, runs = self.clock(), 0
        while runs < RUNS or self.clock() - start < self.warmup_s * 1e9:
            lane.engine.run(lane.feeds(index[runs % len(index)]), lane.outputs)
            runs += 1

    def _tell(self, description: str, share: float) -> None:
        self.progress.update(description, (self._phase + share) / self.phases)


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
