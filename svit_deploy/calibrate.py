"""Choosing gate thresholds and token budgets from images, with the PyTorch reference."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from svit_deploy.compare import first_gated, kept_counts
from svit_deploy.config import ModelConfig
from svit_deploy.errors import InputError
from svit_deploy.models.reference import Reference

BATCH = 16


@dataclass(frozen=True)
class GateCalibration:
    """Thresholds and the mean keep ratios they gave on the calibration images."""

    thresholds: tuple[float, ...]
    measured_keep: tuple[float, ...]


def calibrate_gates(
    reference: Reference,
    images: np.ndarray,
    targets: Sequence[float],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> GateCalibration:
    """Finds per gate the threshold at which the mean keep ratio meets its target.

    Gates are set one after the other, each on the feature maps that the earlier thresholds
    produce. All feature maps of `images` are held in memory: n · S · C floats.

    Args:
        images: `[n, 3, H, W]` float32.
        targets: keep ratio per gate, kept / gated tokens, above 0 and at most 1.
        progress: called with the gates done and their number.
    """
    passes = [reference.steps(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    return calibrate_passes(reference.config, passes, targets, progress)


def calibrate_passes(
    config: ModelConfig,
    passes: Sequence[Generator[tuple[int, torch.Tensor], torch.Tensor, object]],
    targets: Sequence[float],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> GateCalibration:
    """`calibrate_gates` on forward passes that stop at each gate, of images of any sizes."""
    pending = [next(steps) for steps in passes]
    thresholds, measured = [], []
    for gate, target in enumerate(targets):
        first = first_gated(config, gate)
        gated = torch.cat([margin[:, first:].flatten() for _, margin in pending])
        threshold = threshold_for(gated.numpy(), target)
        thresholds.append(threshold)
        measured.append(float((gated > threshold).float().mean()))
        progress(gate + 1, len(targets))
        if gate + 1 < len(targets):
            pending = [
                steps.send(margin > threshold)
                for steps, (_, margin) in zip(passes, pending, strict=True)
            ]
    return GateCalibration(tuple(thresholds), tuple(measured))


def threshold_for(margins: np.ndarray, target: float) -> float:
    """The float32 threshold that keeps a share `target` of the margins, as nearly as ties allow.

    It lies half-way between the last kept and the first pruned margin, so that rounding on
    another machine does not move either across.

    Raises:
        InputError: a margin is NaN or infinite.
    """
    if not np.isfinite(margins).all():
        raise InputError(
            "the gates compute NaN or infinity on the calibration images", "check the checkpoint"
        )
    ranked = np.sort(margins.astype(np.float64), axis=None)[::-1]
    # Equal margins are kept or pruned together: only these counts can be kept.
    counts = np.concatenate([[0], np.flatnonzero(np.diff(ranked)) + 1, [ranked.size]])
    kept = int(counts[np.argmin(np.abs(counts - round(target * ranked.size)))])
    if kept in (0, ranked.size):
        last = ranked[0] if kept == 0 else ranked[-1]
        room = max(1e-3, abs(last) * 1e-3)
        return float(np.float32(last + room if kept == 0 else last - room))
    last, first = ranked[kept - 1], ranked[kept]
    threshold = np.float32((last + first) / 2)
    return float(threshold if threshold < last else first)  # neighbouring floats have no middle


def auto_budgets(keep_mask: np.ndarray, config: ModelConfig, percentile: float) -> tuple[int, ...]:
    """Per gate the kept count that a share `percentile` of the images does not exceed."""
    counts = kept_counts(keep_mask, config)
    needed = np.percentile(counts, percentile, axis=0, method="higher")
    return tuple(max(1, int(count)) for count in needed)
