"""Whether the images of today keep tokens as those of the export did."""

from __future__ import annotations

import numpy as np

WINDOW = 1000
"""Images that are compared, the latest."""
FEWEST = 100
"""Below it nothing is said."""
QUARTILES = (0.25, 0.5, 0.75)
BINS = 2 * len(QUARTILES) + 1
CHANCE = 22.458
"""What a chi-squared value of six degrees of freedom exceeds once in a thousand times."""


class Drift:
    """Population stability index, by gate, of keep ratios against those of the export's samples.

    The quartiles of both together part the ratios into four bins; ratios that equal a quartile,
    as those of a gate that always keeps as many do, are bins of their own. The index is the sum
    over bins of `(q - p) * ln(q / p)`, each side with one image more that is spread as both
    together are, so that no bin is empty on one side alone. Of n samples and m images it is, by
    chance alone, distributed as `(1 / n + 1 / m)` times a chi-squared value of as many degrees of
    freedom as bins less one (Yurdakul, Statistical Properties of Population Stability Index, 2018):
    few samples tell little.

    Args:
        samples: `[n, G]` shares of tokens that each gate kept.
        threshold: an index above it is drift, if chance does not explain it.
    """

    def __init__(self, samples: np.ndarray, threshold: float) -> None:
        self.samples, self.threshold = samples, threshold
        self._recent = np.zeros((WINDOW, samples.shape[1]))
        self.images = 0

    def add(self, ratios: np.ndarray) -> None:
        """An image's keep ratios `[G]`."""
        self._recent[self.images % WINDOW] = ratios
        self.images += 1

    @property
    def compared(self) -> int:
        return min(self.images, WINDOW)

    def index(self) -> np.ndarray:
        """By gate `[G]`; 0 before there are images."""
        recent = self._recent[: self.compared]
        both = np.concatenate([self.samples, recent])
        quartiles = np.quantile(both, QUARTILES, axis=0)[:, None]
        bins = (both >= quartiles).sum(axis=0) + (both > quartiles).sum(axis=0)
        is_in = bins == np.arange(BINS)[:, None, None]
        n, m = len(self.samples), len(recent)
        share = is_in.mean(axis=1)
        p = (is_in[:, :n].sum(axis=1) + share) / (n + 1)
        q = (is_in[:, n:].sum(axis=1) + share) / (m + 1)
        return ((q - p) * np.log(np.divide(q, p, out=np.ones_like(p), where=share > 0))).sum(axis=0)

    def limit(self) -> float:
        """What the index must exceed to be called drift."""
        if self.compared < FEWEST:
            return float("inf")
        return max(self.threshold, CHANCE * (1 / len(self.samples) + 1 / self.compared))
