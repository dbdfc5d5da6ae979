"""How decisions differ, and what of it rounding explains: pure numerics, NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from svit_deploy.model.config import ModelConfig
from svit_deploy.model.result import Selected
from svit_deploy.tasks.distance import margin_error


@dataclass(frozen=True)
class GateFlips:
    """How one gate's decisions differ from the reference's.

    Attributes:
        tokens: decisions compared.
        flips: decisions that differ, in images where no earlier gate differed.
        near_ties: of these, flips whose reference margin is within rounding of its cut.
        consequences: decisions that differ in images where an earlier gate differed already.
        largest_margin: largest distance of a flipped margin from its cut, infinite for a token
            that is always kept; 0 without flips.
    """

    tokens: int
    flips: int
    near_ties: int
    consequences: int
    largest_margin: float

    @property
    def faults(self) -> int:
        """Flips that rounding does not explain."""
        return self.flips - self.near_ties

    @property
    def agreement(self) -> float:
        """Share of decisions that agree with the reference."""
        return 1.0 - (self.flips + self.consequences) / self.tokens if self.tokens else 1.0

    @classmethod
    def total(cls, parts: Sequence[GateFlips]) -> GateFlips:
        """One gate's flips in all of some groups of images."""
        return cls(
            tokens=sum(part.tokens for part in parts),
            flips=sum(part.flips for part in parts),
            near_ties=sum(part.near_ties for part in parts),
            consequences=sum(part.consequences for part in parts),
            largest_margin=max((part.largest_margin for part in parts), default=0.0),
        )


def beyond_budget(selected: Selected, rows: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Tokens `[B, G]` over a threshold that the budgets cut.

    Args:
        rows: tokens `[G]` that the budgets let through.
        thresholds: `[G]`.
    """
    wanted = (selected.margin > thresholds[None, :, None]).sum(axis=2)
    return np.asarray(np.maximum(wanted - rows, 0))


def compare_masks(
    keep_mask: np.ndarray,
    expected_mask: np.ndarray,
    distance: np.ndarray,
    rounding: np.ndarray,
    config: ModelConfig,
) -> list[GateFlips]:
    """Compares keep masks gate by gate, telling first flips from their consequences.

    Args:
        keep_mask, expected_mask: `[n, G, S]` bool.
        distance: `[n, G, S]`, of the reference's margins (`decision_distance`).
        rounding: `[G]`, the distance that rounding may cross.
    """
    different = keep_mask != expected_mask
    flipped_before = np.zeros(len(keep_mask), bool)
    result = []
    for gate in range(keep_mask.shape[1]):
        first = config.first_gated(gate)
        flips = different[:, gate] & ~flipped_before[:, None]
        # A flip of a token that the gate may not prune is never a near tie.
        ties = flips & (distance[:, gate] <= rounding[gate])
        ties[:, :first] = False
        reach = distance[:, gate][flips]
        result.append(
            GateFlips(
                tokens=int(different[:, gate].size),
                flips=int(flips.sum()),
                near_ties=int(ties.sum()),
                consequences=int((different[:, gate] & flipped_before[:, None]).sum()),
                largest_margin=float(np.max(reach, initial=0.0)),
            )
        )
        flipped_before |= different[:, gate].any(axis=1)
    return result


def decision_distance(
    margin: np.ndarray, thresholds: np.ndarray, rows: np.ndarray | None
) -> np.ndarray:
    """How far margins must move, all at once, before each decision `[n, G, S]` can change.

    Without a budget that is the distance from the threshold. With one, a kept token may also be
    overtaken by the best token pruned, and a pruned one must overtake the last token kept: the
    two meet half-way, and whichever comes in must be above the threshold too.

    Args:
        margin: `[n, G, S]`, +inf for tokens that are always kept.
        thresholds: `[G]`.
        rows: `[G]`, tokens that a budget lets through, always-kept ones included, or None.
    """
    margin = margin.astype(np.float64)
    above = margin - thresholds.astype(np.float64)[None, :, None]
    distance = np.abs(above)
    if rows is not None:
        ranked = -np.sort(-margin, axis=2)
        for gate, row in enumerate(rows):
            if row >= margin.shape[2]:
                continue
            m, up = margin[:, gate], above[:, gate]
            last, beyond = ranked[:, gate, row - 1, None], ranked[:, gate, row, None]
            with np.errstate(invalid="ignore"):  # both infinite: always kept, or gone already
                overtaken = np.fmax((m - beyond) / 2, thresholds[gate] - beyond)
                overtaking = np.fmax((last - m) / 2, -up)
            kept = (m >= last) & (up > 0)
            distance[:, gate] = np.where(kept, np.minimum(up, overtaken), overtaking)
    return distance


def compare_selections(
    actual: Selected,
    expected: Selected,
    thresholds: np.ndarray,
    rows: np.ndarray | None,
    rounding: np.ndarray,
    scales: np.ndarray,
    config: ModelConfig,
) -> list[GateFlips]:
    """Compares what became of tokens, given the margins that are expected.

    Args:
        thresholds, rows: as `decision_distance` takes them.
        rounding: `[G]`, the distance that rounding may cross, and `scales [G]` its unit.
    """
    distance = decision_distance(expected.margin, thresholds, rows)
    mine, theirs = actual.decisions, expected.decisions
    if expected.source is not None:
        # Patches follow the token that they are part of: only its own decision counts.
        own = ~np.isneginf(expected.margin)
        mine, theirs = np.where(own, mine, 0), np.where(own, theirs, 0)
        lead = np.full(own.shape, np.inf) if expected.lead is None else expected.lead
        # Leads are differences of cosines: in units of margins for the limits of those.
        lead = lead / 2 * scales[None, :, None]
        flipped = actual.keep_mask != expected.keep_mask
        # Where one of the tokens that stay is another, those merged into it go elsewhere.
        lead = np.where(flipped.any(axis=2, keepdims=True), 0, lead)
        distance = np.where(flipped, distance, lead)
    return compare_masks(mine, theirs, distance, rounding, config)


def margin_drift(actual: Selected, expected: Selected) -> np.ndarray:
    """Largest difference of the margins of each gate `[G]`, where all decisions before it agree."""
    late = np.zeros(len(actual.margin), bool)
    drift = []
    for gate in range(actual.margin.shape[1]):
        drift.append(margin_error(actual.margin[~late, gate], expected.margin[~late, gate]))
        late |= (actual.decisions[:, gate] != expected.decisions[:, gate]).any(axis=1)
    return np.array(drift)


def effective_keep(decision: np.ndarray, margin: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    """Decisions `[n, G, S]` cut to a budget of `rows [G]` tokens by margin, ties by position."""
    if rows is None:
        return decision
    order = np.argsort(-np.where(decision, margin, -np.inf), axis=2, kind="stable")
    rank = np.argsort(order, axis=2, kind="stable")
    return decision & (rank < np.asarray(rows)[None, :, None])


def against_rule(selected: Selected, thresholds: np.ndarray, rows: np.ndarray | None) -> list[int]:
    """Gates whose keep mask is not margin > threshold, cut to a budget of `rows [G]` by rank."""
    decision = selected.margin > thresholds[None, :, None]
    honest = selected.keep_mask == effective_keep(decision, selected.margin, rows)
    return [gate for gate in range(honest.shape[1]) if not honest[:, gate].all()]
