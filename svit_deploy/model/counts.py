"""How many tokens gates keep."""

from __future__ import annotations

import numpy as np

from svit_deploy.model.config import ModelConfig


def kept_counts(keep_mask: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Kept tokens `[n, G]` of `keep_mask [n, G, S]`, among those that each gate decides on."""
    counts = np.zeros(keep_mask.shape[:2], np.int64)
    for gate in range(keep_mask.shape[1]):
        own = slice(config.first_gated(gate), config.num_tokens)
        counts[:, gate] = keep_mask[:, gate, own].sum(axis=1)
    return counts


def keep_ratios(keep_mask: np.ndarray, config: ModelConfig) -> tuple[float, ...]:
    """Mean kept / gated tokens of each gate."""
    counts = kept_counts(keep_mask, config)
    return tuple(
        float(counts[:, gate].mean() / config.gated_tokens(gate)) for gate in range(counts.shape[1])
    )
