"""How the reference's margins lie around their threshold, gate by gate, for a report to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from svit_deploy.model.result import Selected

BINS = 40
OUTER = 0.5
"""Percentile of the margins at either end that the outermost bins take in."""


@dataclass(frozen=True)
class MarginHistogram:
    """Decisions of one gate by their margin.

    Attributes:
        edges: of the bins, one more than counts; the outermost bins hold what lies beyond, too.
        kept, pruned: decisions of the reference.
        threshold: the margin above which a token is kept, if no budget cuts it.
    """

    edges: tuple[float, ...]
    kept: tuple[int, ...]
    pruned: tuple[int, ...]
    threshold: float


def margin_histogram(
    parts: Sequence[Selected], gate: int, threshold: float
) -> MarginHistogram | None:
    """The finite margins of a gate; None where it has no decision to make."""
    margin = np.concatenate([part.margin[:, gate].ravel() for part in parts])
    kept = np.concatenate([part.keep_mask[:, gate].ravel() for part in parts])
    finite = np.isfinite(margin)
    if not finite.any():
        return None
    margin, kept = margin[finite].astype(np.float64), kept[finite]
    low, high = np.percentile(margin, (OUTER, 100 - OUTER))
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    inside = np.clip(margin, edges[0], edges[-1])
    counts = [tuple(np.histogram(inside[which], edges)[0].tolist()) for which in (kept, ~kept)]
    return MarginHistogram(tuple(edges.tolist()), counts[0], counts[1], threshold)
