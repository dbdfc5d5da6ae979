"""How long a benchmark takes: told before it starts, and held under a limit that a user sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from svit_deploy.bench.durations import Timing
from svit_deploy.bench.stats import MIN_BLOCKS
from svit_deploy.errors import UsageError

RUNS = 2  # of each engine in a round
HEADROOM = 1.25
"""How much longer than the first runs tell the fewest rounds may take."""


@dataclass(frozen=True)
class Phase:
    """Engines that are timed together on batches of one size.

    Attributes:
        run_s: seconds of one run of each.
        batches: how many different batches there are.
        masks_s: seconds of reading a batch's keep masks afterwards, of all that tell them.
        load_s: seconds of loading what is not loaded yet.
    """

    run_s: tuple[float, ...]
    batches: int
    masks_s: float = 0.0
    load_s: float = 0.0

    def rounds(self, timing: Timing) -> int:
        """How many there will be without a limit."""
        wanted = timing.duration_s * len(self.run_s) / (RUNS * sum(self.run_s))
        return max(least_rounds(timing), math.ceil(wanted))

    def seconds(self, rounds: int, warmup_s: float = 0.0) -> float:
        """What loading, warming up, so many rounds and the keep masks take."""
        warmup = sum(max(warmup_s, RUNS * run_s) for run_s in self.run_s)
        masks = min(rounds, self.batches) * self.masks_s
        return self.load_s + warmup + rounds * RUNS * sum(self.run_s) + masks


def in_words(seconds: float) -> str:
    """`42 s`, `3 min 5 s`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def least_rounds(timing: Timing) -> int:
    """The rounds that give the samples asked for, and an interval."""
    return max(MIN_BLOCKS, -(-timing.min_samples // RUNS))


class Schedule:
    """The phases of a benchmark, and until when each may last.

    Args:
        limit_ns: the time by which all must be done, on `clock`.

    Raises:
        UsageError: the fewest rounds that tell anything do not fit under the limit.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        timing: Timing,
        clock: Callable[[], int],
        limit_ns: float = math.inf,
    ) -> None:
        self._clock, self._limit_ns = clock, limit_ns
        self._planned_s = [p.seconds(p.rounds(timing), timing.warmup_s) for p in phases]
        self._least_s = [HEADROOM * phase.seconds(MIN_BLOCKS) for phase in phases]
        least_s, left_s = sum(self._least_s), self._left_s()
        if least_s > left_s:
            raise UsageError(
                f"--max-time leaves {in_words(max(left_s, 0))}, and the fewest rounds that tell "
                f"anything take up to {in_words(least_s)}",
                f"give {math.ceil(least_s - left_s)} s more, fewer targets or batch sizes, or "
                "--no-worst-case",
            )

    @property
    def count(self) -> int:
        return len(self._planned_s)

    @property
    def planned_s(self) -> float:
        """Seconds that all phases take without a limit, about."""
        return sum(self._planned_s)

    def until(self, number: int) -> float:
        """When a phase must be done, in nanoseconds of the clock; asked as it begins.

        Beyond the fewest rounds of all phases to come, each gets a share of what is left that
        goes by its plan.
        """
        spare_s = self._left_s() - sum(self._least_s[number:])
        share = self._planned_s[number] / sum(self._planned_s[number:])
        return self._clock() + 1e9 * (self._least_s[number] + max(0.0, spare_s) * share)

    def _left_s(self) -> float:
        return (self._limit_ns - self._clock()) / 1e9
