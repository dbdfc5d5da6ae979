"""The content axis: how many tokens were kept, and what that does to the latency."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from svit_deploy.bench.report import KeptTokens, Sweep, SweepPoint, Tercile
from svit_deploy.bench.stats import fit_latency
from svit_deploy.bench.timing import Lane


def keep_masks(lane: Lane, index: np.ndarray) -> np.ndarray | None:
    """Runs the batches once more, untimed, for their keep masks.

    Args:
        lane: the engine and its images.
        index: image numbers `[batches, B]`.

    Returns:
        Bool `[batches, B, G, S]`, or None where the graph has no such output, or no gates.
    """
    name = lane.keep_output
    if name is None:
        return None
    runs = (lane.engine.run(lane.feeds(chosen), (name,)) for chosen in index)
    masks = np.stack([run[name].astype(bool) for run in runs])
    return masks if masks.size else None


def kept_tokens(masks: np.ndarray) -> KeptTokens:
    """Summarises keep masks `[batches, B, G, S]`, G and S above 0."""
    counts = masks.sum(axis=3)
    per_image = counts.mean(axis=2)
    per_gate = counts.mean(axis=(0, 1))
    fullest = counts.max(axis=1).mean(axis=0)
    live = per_gate > 0
    return KeptTokens(
        tokens=masks.shape[3],
        min=float(per_image.min()),
        p50=float(np.median(per_image)),
        mean=float(per_image.mean()),
        max=float(per_image.max()),
        keep_ratio=float(masks.mean()),
        per_gate_mean=tuple(per_gate.tolist()),
        padding=float((fullest[live] / per_gate[live]).mean()) if live.any() else None,
    )


def terciles(kept_of_block: np.ndarray, samples_ms: np.ndarray) -> tuple[Tercile, ...]:
    """Splits the blocks in three by the kept tokens of their batches.

    Args:
        kept_of_block: mean kept tokens `[blocks]`.
        samples_ms: latencies `[blocks, runs]`.

    Returns:
        Three groups from few to many tokens; none where fewer than three counts occur.
    """
    if len(np.unique(kept_of_block)) < 3:
        return ()
    groups = np.array_split(np.argsort(kept_of_block, kind="stable"), 3)
    return tuple(
        Tercile(
            kept_min=float(kept_of_block[group].min()),
            kept_max=float(kept_of_block[group].max()),
            p50_ms=float(np.median(samples_ms[group])),
            count=samples_ms[group].size,
        )
        for group in groups
    )


def fit_sweep(points: Sequence[SweepPoint], baseline_p50_ms: float | None) -> Sweep:
    """Fits a line through the points and finds where it crosses the baseline."""
    intercept, slope = fit_latency(
        [point.keep_ratio for point in points], [point.p50_ms for point in points]
    )
    crossing = None
    if baseline_p50_ms is not None and slope > 0:
        crossing = (baseline_p50_ms - intercept) / slope
        crossing = crossing if 0 <= crossing <= 1 else None
    return Sweep(tuple(points), intercept, slope, baseline_p50_ms, crossing)
