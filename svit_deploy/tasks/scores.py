"""How good a model is where it is known what is right, with intervals; NumPy only."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from svit_deploy.images.prepared import Prepared
from svit_deploy.model.result import Outputs

CONFIDENCE = 0.95
RESAMPLES = 1000
MIN_IMAGES = 10
"""With fewer, resampling the images says nothing."""
_Z = 1.959963984540054  # of the normal distribution, two-sided 95 %


@dataclass(frozen=True)
class Measure:
    """One figure of how good a model is.

    Attributes:
        key: in JSON, for example `top1_accuracy`.
        label: for the eye.
        low, high: its 95 % interval; None where there are too few images to tell.
        style: how it is printed, as `format` takes it.
    """

    key: str
    label: str
    value: float
    low: float | None = None
    high: float | None = None
    style: str = ".4f"

    @property
    def interval(self) -> str:
        """For the eye, empty if it is not known."""
        if self.low is None or self.high is None:
            return ""
        return f"{self.low:{self.style}} to {self.high:{self.style}}"

    def __str__(self) -> str:
        interval = f" (95 % interval {self.interval})" if self.interval else ""
        return f"{self.label} {self.value:{self.style}}{interval}"


class Truth(Protocol):
    """Annotations of images."""

    def check(self, names: Sequence[str]) -> tuple[str, ...]:
        """Notes, if it tells how good a model is on some pictures; else raises InputError."""

    def results(self, image: Prepared, shown: Outputs) -> list[dict[str, Any]]:
        """A picture's outputs as the data set's own evaluation takes them, JSON-able."""


class Scores(ABC):
    """How good outputs are, collected image by image."""

    images = 0

    @abstractmethod
    def add(self, image: Prepared, outputs: Outputs) -> None:
        """Counts an image.

        Raises:
            InputError: it is not known what is right for it.
        """

    @abstractmethod
    def values(self) -> dict[str, float]:
        """The figures by their keys, without intervals."""

    @abstractmethod
    def measures(self, seed: int, progress: Callable[[float], None]) -> list[Measure]:
        """The figures with their intervals.

        Args:
            seed: of an interval that is drawn at random.
            progress: is told the share that is done.
        """


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share, by E. B. Wilson, JASA 22 (1927).

    Raises:
        ValueError: not 0 <= hits <= count, or a count of 0.
    """
    if not 0 <= hits <= count or not count:
        raise ValueError(f"{hits} of {count} is no share")
    share, weight = hits / count, _Z**2 / count
    centre = (share + weight / 2) / (1 + weight)
    reach = _Z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return min(max(0.0, centre - reach), share), max(min(1.0, centre + reach), share)


def bootstrap_intervals(
    images: int,
    evaluate: Callable[[np.ndarray], dict[str, float]],
    seed: int,
    progress: Callable[[float], None],
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap over images: 95 % intervals of figures, by their keys.

    Args:
        evaluate: the figures, given how often each image counts `[n]`.
        seed: the same one draws the same images.

    Returns:
        Nothing with fewer than `MIN_IMAGES` images.
    """
    if images < MIN_IMAGES:
        return {}
    rng, drawn = np.random.default_rng(seed), []
    for number in range(RESAMPLES):
        progress(number / RESAMPLES)
        chosen = rng.integers(images, size=images)
        drawn.append(evaluate(np.bincount(chosen, minlength=images)))
    tails = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    return {
        key: (float(low), float(high))
        for key in drawn[0]
        for low, high in [np.quantile([one[key] for one in drawn], tails)]
    }
