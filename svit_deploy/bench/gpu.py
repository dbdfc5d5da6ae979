"""Where the time of runs on a GPU went, beside the time from host to host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from svit_deploy.bench.stats import LatencySummary, RatioInterval, ratio_interval, summarise
from svit_deploy.engines.base import RunTimes

ENQUEUE_BOUND = 0.8
"""Enqueue time over GPU time from which on trtexec, too, warns."""


@dataclass(frozen=True)
class GpuTimes:
    """Of one engine at one batch size; transfers and enqueueing are medians.

    Attributes:
        gpu: time on the device, without transfers.
        h2d_p50_ms, d2h_p50_ms: transfers from and to the host.
        enqueue_p50_ms: what the host needed to enqueue a run.
        enqueue_share: that over the median of `gpu`.
        graph: whether every run was a CUDA graph.
        profile, shape: the optimisation profile, if the engine has any, and the input's shape.
        speedup: of the time on the device over the baseline's, if both can tell. Transfers, and
            what the host does before and after, pull the speed-up from host to host towards 1.
    """

    gpu: LatencySummary
    h2d_p50_ms: float
    d2h_p50_ms: float
    enqueue_p50_ms: float
    enqueue_share: float
    graph: bool
    profile: int | None
    shape: tuple[int, ...]
    speedup: RatioInterval | None = None


def with_speedup(
    times: GpuTimes | None, runs: Sequence[RunTimes], baseline: Sequence[RunTimes], seed: int
) -> GpuTimes | None:
    """Adds the speed-up of the time on the device.

    Args:
        runs, baseline: of all rounds, two in each.
    """
    if times is None or len(runs) != len(baseline):
        return times
    pair = (np.reshape([run.gpu_ms for run in side], (-1, 2)) for side in (baseline, runs))
    return replace(times, speedup=ratio_interval(*pair, seed=seed))


def gpu_times(times: Sequence[RunTimes], shape: tuple[int, ...]) -> GpuTimes | None:
    """Summarises the runs of an engine that can tell; None for another."""
    if not times:
        return None
    gpu = summarise([run.gpu_ms for run in times])
    enqueue_ms = float(np.median([run.enqueue_ms for run in times]))
    return GpuTimes(
        gpu=gpu,
        h2d_p50_ms=float(np.median([run.h2d_ms for run in times])),
        d2h_p50_ms=float(np.median([run.d2h_ms for run in times])),
        enqueue_p50_ms=enqueue_ms,
        enqueue_share=enqueue_ms / gpu.p50_ms,
        graph=all(run.graph for run in times),
        profile=times[-1].profile,
        shape=shape,
    )


def advice(times: GpuTimes, engine: Mapping[str, Any]) -> str | None:
    """What to try where the GPU may wait for the host; None where it does not.

    Args:
        engine: the engine's description.
    """
    if times.enqueue_share <= ENQUEUE_BOUND:
        return None
    graphs = engine.get("cuda_graph") or {}
    possible = not times.graph and graphs.get("mode") == "off"
    return (
        f"the host takes {times.enqueue_share:.0%} of the GPU's time to enqueue a run, so the GPU "
        f"may wait for it: try {'--cuda-graph on, or ' if possible else ''}a larger batch"
    )
