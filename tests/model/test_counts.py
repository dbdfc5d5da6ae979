"""Kept tokens are counted among those that a gate decides on."""

from __future__ import annotations

import numpy as np

from svit_deploy.model.config import ModelConfig
from svit_deploy.model.counts import keep_ratios, kept_counts


def test_kept_tokens_are_counted_among_the_gated_ones():
    """Two gates on five tokens, of which only the second may prune the class token."""
    config = ModelConfig("svit", 4, 2, 1, 8, 1, 2, (1, 4), (1, 4), False, (0, 1), (False, True))
    row = [True, True, False, True, False]
    keep = np.array([[row, row]])
    assert (config.first_gated(0), config.first_gated(1)) == (1, 0)
    assert kept_counts(keep, config).tolist() == [[2, 3]]
    assert keep_ratios(keep, config) == (2 / 4, 3 / 5)
