"""Throughput with several runs in flight: what a server has, and a latency does not tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from svit_deploy.bench.settings import BenchSettings
from svit_deploy.bench.timing import Lane, Timed
from svit_deploy.engines.base import Flight

MOST_S = 2.0
"""Seconds that this takes of an engine at one batch size, at most."""
FEWEST = 4
"""Runs for each that may be in flight."""


@dataclass(frozen=True)
class InFlight:
    """Of one engine at one batch size.

    Attributes:
        runs_in_flight: how many runs were under way at a time.
        runs: how many were timed.
        images_per_s: from the first array handed over to the last one given back.
        device_ms: what a run took of the device, which never waited for the host.
    """

    runs_in_flight: int
    runs: int
    images_per_s: float
    device_ms: float


def fly(
    lanes: Sequence[Lane], index: np.ndarray, timed: Timed, settings: BenchSettings
) -> list[InFlight | None]:
    """Measures each engine forwards and backwards; None of those that run one at a time.

    Args:
        index: image numbers `[batches, B]`.
        timed: the latencies measured before, which say how many runs there is time for.
    """
    found: list[list[Flight]] = [[] for _ in lanes]
    if settings.in_flight > 1 and settings.max_time_s is None:
        order = list(range(len(lanes)))
        for number in order + order[::-1]:
            one_s = float(np.median(timed.samples_ms[number])) / 1e3
            runs = math.ceil(min(settings.timing.duration_s, MOST_S) / 2 / one_s)
            flight = _fly(lanes[number], index, max(runs, FEWEST * settings.in_flight), settings)
            if flight is not None:
                found[number].append(flight)
    return [_summary(flights, index.shape[1]) if flights else None for flights in found]


def _fly(lane: Lane, index: np.ndarray, runs: int, settings: BenchSettings) -> Flight | None:
    feeds = [lane.feeds(chosen) for chosen in index[: settings.in_flight + 1]]
    return lane.engine.fly(feeds, lane.outputs, runs, settings.in_flight)


def _summary(flights: Sequence[Flight], batch: int) -> InFlight:
    runs = sum(flight.runs for flight in flights)
    return InFlight(
        runs_in_flight=flights[0].in_flight,
        runs=runs,
        images_per_s=runs * batch / sum(flight.seconds for flight in flights),
        device_ms=sum(flight.device_ms * flight.runs for flight in flights) / runs,
    )
