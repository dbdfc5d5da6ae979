"""Choosing gate thresholds from images, with the PyTorch reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from svit_deploy.errors import InputError
from svit_deploy.images.prepared import Prepared, groups
from svit_deploy.methods.families import family_of
from svit_deploy.tasks.reference import Reference


@dataclass(frozen=True)
class GateCalibration:
    """Thresholds and the mean keep ratios they gave on the calibration images."""

    thresholds: tuple[float, ...]
    measured_keep: tuple[float, ...]


def calibrate_gates(
    reference: Reference,
    images: Sequence[Prepared],
    targets: Sequence[float],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> GateCalibration:
    """Finds per gate the threshold at which the mean keep ratio meets its target.

    Gates are set one after the other, each on the feature maps that the earlier thresholds
    produce. All feature maps of `images` are held in memory: n · S · C floats.

    Args:
        targets: keep ratio per gate, kept / gated tokens, above 0 and at most 1.
        progress: called with the gates done and their number.
    """
    config, together = reference.config, reference.task.together
    passes = [reference.steps(group) for group in groups(images, together)]
    pending = [next(steps) for steps in passes]
    thresholds, measured = [], []
    for gate, target in enumerate(targets):
        first = config.first_gated(gate)
        gated = torch.cat([margin[:, first:].flatten() for _, margin in pending])
        reached = gated[~gated.isneginf()] if family_of(config).method.bars else gated
        share = min(1.0, target * len(gated) / max(len(reached), 1))
        threshold = threshold_for(reached.numpy(), share) if len(reached) else 0.0
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
