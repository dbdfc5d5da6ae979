"""Pure numerics of parity: kept counts, errors, flips. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from svit_deploy.config import ModelConfig


def kept_counts(keep_mask: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Kept tokens `[n, G]` of `keep_mask [n, G, S]`, among those that each gate decides on."""
    counts = np.zeros(keep_mask.shape[:2], np.int64)
    for gate in range(keep_mask.shape[1]):
        own = slice(first_gated(config, gate), config.num_tokens)
        counts[:, gate] = keep_mask[:, gate, own].sum(axis=1)
    return counts


def first_gated(config: ModelConfig, gate: int) -> int:
    """The first token that a gate decides on: those before it are always kept."""
    return 0 if config.gate_class_token[gate] else config.prefix_tokens


def budget_rows(config: ModelConfig, budgets: Sequence[int]) -> tuple[int, ...]:
    """Rows each gated block computes per image: its budget and the tokens always kept."""
    return tuple(budget + first_gated(config, gate) for gate, budget in enumerate(budgets))


def keep_ratios(keep_mask: np.ndarray, config: ModelConfig) -> tuple[float, ...]:
    """Mean kept / gated tokens of each gate."""
    counts = kept_counts(keep_mask, config)
    return tuple(
        float(counts[:, gate].mean() / config.gated_tokens(gate)) for gate in range(counts.shape[1])
    )


def token_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest relative error of a token: max over tokens of |actual - expected| / |expected|.

    A token's vector is compared as a whole (Euclidean norms), so that tokens with very large
    activations, common in Vision Transformers, do not hide errors in the others.

    Args:
        actual, expected: `[..., C]`, C values per token.
    """
    exact = expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.linalg.norm(actual - exact, axis=-1)
        return _largest(difference / np.maximum(np.linalg.norm(exact, axis=-1), 1e-30))


def margin_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference of margins; infinite where only one of them is."""
    both = np.isinf(actual) & (actual == expected)
    with np.errstate(invalid="ignore"):
        return _largest(np.where(both, 0.0, np.abs(actual.astype(np.float64) - expected)))


@dataclass(frozen=True)
class GateFlips:
    """How one gate's decisions differ from the reference's.

    Attributes:
        tokens: decisions compared.
        flips: decisions that differ, in images where no earlier gate differed.
        coin_tosses: of these, flips whose reference margin is within rounding of its cut.
        consequences: decisions that differ in images where an earlier gate differed already.
        largest_margin: largest distance of a flipped margin from its cut, infinite for a token
            that is always kept; 0 without flips.
    """

    tokens: int
    flips: int
    coin_tosses: int
    consequences: int
    largest_margin: float

    @property
    def faults(self) -> int:
        """Flips that rounding does not explain."""
        return self.flips - self.coin_tosses

    @property
    def agreement(self) -> float:
        """Share of decisions that agree with the reference."""
        return 1.0 - (self.flips + self.consequences) / self.tokens if self.tokens else 1.0


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
        first = first_gated(config, gate)
        flips = different[:, gate] & ~flipped_before[:, None]
        # A flip of a token that the gate may not prune is never a coin toss.
        tosses = flips & (distance[:, gate] <= rounding[gate])
        tosses[:, :first] = False
        reach = distance[:, gate][flips]
        result.append(
            GateFlips(
                tokens=int(different[:, gate].size),
                flips=int(flips.sum()),
                coin_tosses=int(tosses.sum()),
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
            overtaken = np.maximum((m - beyond) / 2, thresholds[gate] - beyond)
            with np.errstate(invalid="ignore"):  # both infinite: kept, so not looked at
                overtaking = np.maximum((last - m) / 2, -up)
            kept = (m >= last) & (up > 0)
            distance[:, gate] = np.where(kept, np.minimum(up, overtaken), overtaking)
    return distance


def effective_keep(decision: np.ndarray, margin: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    """Decisions `[n, G, S]` cut to a budget of `rows [G]` tokens by margin, ties by position."""
    if rows is None:
        return decision
    order = np.argsort(-np.where(decision, margin, -np.inf), axis=2, kind="stable")
    rank = np.argsort(order, axis=2, kind="stable")
    return decision & (rank < np.asarray(rows)[None, :, None])


def logits_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute error of a logit, in units of max(1, rms of the expected logits)."""
    if not expected.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        scale = max(1.0, rms(expected))
        return _largest(np.abs(actual.astype(np.float64) - expected) / scale)


def rms(values: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


def _largest(errors: np.ndarray) -> float:
    """The largest error, 0 of none. NaN would compare as no error: it counts as infinite."""
    return float(np.max(np.where(np.isnan(errors), np.inf, errors), initial=0.0))
