"""Which candidates are worth having, and the one that is taken: pure functions of what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from svit_deploy.tune.settings import LatencyBudget
from svit_deploy.verify.words import number_of

ROUNDING = 1e-12
"""What adding and dividing shares may be off by."""


@dataclass(frozen=True)
class Point:
    """A candidate as it was measured: with so many threads, on batches of a size.

    Attributes:
        candidate: its name.
        latency: of a run in milliseconds, by mean, p50, p90, p99 and max; None where the runs
            were too few to tell.
        quality: the higher, the better: accuracy, or the share of decisions that agree.
        drop: accuracy lost against the checkpoint; None where nothing tells.
        eligible: whether it may be chosen; the base may stand outside of what was asked for.
    """

    candidate: str
    threads: int
    batch: int
    latency: dict[str, float | None]
    quality: float
    drop: float | None = None
    eligible: bool = True

    @property
    def ms_per_image(self) -> float:
        """By the median of the runs."""
        p50 = self.latency["p50"]
        assert p50 is not None  # it needs no number of runs
        return p50 / self.batch

    def dominates(self, other: Point) -> bool:
        """Whether it is as fast and as good, and better in one of the two."""
        faster, better = self.ms_per_image, self.quality
        return (
            faster <= other.ms_per_image
            and better >= other.quality
            and (faster < other.ms_per_image or better > other.quality)
        )


@dataclass(frozen=True)
class Limits:
    """What the chosen one must hold."""

    max_drop: float
    latency: LatencyBudget | None = None

    def refusal(self, point: Point) -> str | None:
        """Why a point cannot be chosen, if it cannot."""
        if not self.accurate(point):
            return f"loses {point.drop:.2%}, more than {self.max_drop:.2%}"
        if self.latency is not None and not self.in_time(point):
            measured = point.latency[self.latency.statistic]
            if measured is None:
                return f"too few runs to tell its {self.latency.statistic}"
            return f"{self.latency.statistic} {measured:.3g} ms, above {self.latency.ms:g} ms"
        return None if point.eligible else "not among those asked for"

    def accurate(self, point: Point) -> bool:
        return point.drop is None or point.drop <= self.max_drop + ROUNDING

    def in_time(self, point: Point) -> bool:
        if self.latency is None:
            return True
        measured = point.latency[self.latency.statistic]
        return measured is not None and measured <= self.latency.ms


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Those that no other dominates, the fastest first."""
    front = [one for one in points if not any(other.dominates(one) for other in points)]
    return sorted(front, key=lambda one: (one.ms_per_image, -one.quality))


def choose(points: Sequence[Point], limits: Limits) -> Point | None:
    """The fastest that holds the limits; under a latency budget the best, then the fastest."""
    fitting = [one for one in points if limits.refusal(one) is None]
    if limits.latency is None:
        return min(fitting, key=lambda one: (one.ms_per_image, -one.quality), default=None)
    return min(fitting, key=lambda one: (-one.quality, one.ms_per_image), default=None)


def nearest_miss(points: Sequence[Point], limits: Limits) -> str:
    """What comes nearest to the limits where nothing holds them."""
    points = [one for one in points if one.eligible]
    accurate = [one for one in points if limits.accurate(one)]
    if not accurate:
        best = max(points, key=lambda one: one.quality)
        return f"{named(best)} comes nearest and loses {best.drop:.2%}"
    assert limits.latency is not None  # or an accurate one would have been chosen
    statistic = limits.latency.statistic
    measured = [(ms, one) for one in accurate if (ms := one.latency[statistic]) is not None]
    if not measured:
        return f"the runs were too few to tell the {statistic} of any"
    ms, fastest = min(measured, key=lambda pair: pair[0])
    return f"{named(fastest)} comes nearest with a {statistic} of {ms:.3g} ms"


def named(point: Point) -> str:
    """A point in words: what is not the default, too."""
    threads = f", {number_of(point.threads, 'thread')}" if point.threads else ""
    return f"{point.candidate}{threads}, batch {point.batch}"
