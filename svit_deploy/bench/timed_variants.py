"""A target's worst case and its sweep over keep ratios, timed against the baseline."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from svit_deploy.bench.content import fit_sweep, keep_masks
from svit_deploy.bench.lanes import make_lane
from svit_deploy.bench.report import SweepPoint, TargetResult, WorstCase
from svit_deploy.bench.settings import KEEP, WORST_CASE, BenchSettings, BenchTarget
from svit_deploy.bench.stats import ratio_interval, summarise
from svit_deploy.bench.timing import Lane, Timed, Timer


def with_variants(
    result: TargetResult,
    target: BenchTarget,
    baseline: Lane,
    index: np.ndarray,
    timer: Timer,
    settings: BenchSettings,
) -> TargetResult:
    """Adds the worst case and the sweep, timed against the baseline in blocks of their own."""
    names = settings.variants(target)
    if not names:
        return result
    is_baseline = target.label == baseline.label
    points = []
    with contextlib.ExitStack() as engines:
        lanes = [make_lane(target, n, engines.enter_context(target.variants[n]())) for n in names]
        against = replace(baseline, keep_output=None)  # its masks are known
        phase = f"batch {result.batch}, {target.label}"
        timed = timer.time([against, *lanes], index, phase, optional=True)
        if timed.left:
            result = replace(result, notes=(*result.notes, _left_out(names, timed)))
        if not timed.rounds:
            return result
        samples = timed.samples_ms
        for lane, taken in zip(lanes, samples[1:], strict=True):
            latency = summarise(taken)
            if lane.label == WORST_CASE:
                speedup = ratio_interval(samples[0], taken, seed=settings.seed)
                worst_case = WorstCase(latency, None if is_baseline else speedup)
                result = replace(result, worst_case=worst_case)
            else:
                requested = float(lane.label.removeprefix(KEEP))
                masks = keep_masks(lane, index[: len(taken)])
                ratio = requested if masks is None else float(masks.mean())
                points.append(SweepPoint(requested, ratio, latency.p50_ms))
    if points:
        p50_ms = None if is_baseline else float(np.median(samples[0]))
        result = replace(result, sweep=fit_sweep(points, p50_ms))
    return result


def _left_out(names: Sequence[str], timed: Timed) -> str:
    """What a time limit did to a target's variants."""
    what = ", ".join(names)
    if not timed.rounds:
        return f"not timed for want of time (--max-time): {what}"
    return f"{timed.left} of {timed.left + timed.rounds} rounds left out by --max-time: {what}"
