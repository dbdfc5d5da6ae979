"""How far two results are apart: pure numerics, NumPy only."""

from __future__ import annotations

import numpy as np


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
        return largest(difference / np.maximum(np.linalg.norm(exact, axis=-1), 1e-30))


def margin_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference of margins; infinite where only one of them is."""
    both = np.isinf(actual) & (actual == expected)
    with np.errstate(invalid="ignore"):
        return largest(np.where(both, 0.0, np.abs(actual.astype(np.float64) - expected)))


def logits_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute error of a logit, in units of max(1, rms of the expected logits)."""
    if not expected.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        scale = max(1.0, rms(expected))
        return largest(np.abs(actual.astype(np.float64) - expected) / scale)


def rms(values: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


def largest(errors: np.ndarray) -> float:
    """The largest error, 0 of none. NaN would compare as no error: it counts as infinite."""
    return float(np.max(np.where(np.isnan(errors), np.inf, errors), initial=0.0))
