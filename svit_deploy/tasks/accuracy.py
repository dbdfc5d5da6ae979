"""Top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from svit_deploy import names
from svit_deploy.errors import InputError
from svit_deploy.images.prepared import Prepared
from svit_deploy.model.result import Outputs
from svit_deploy.tasks.scores import Measure, Scores, wilson_interval


class Accuracy(Scores):
    """How often an image's own class is the first, and where there are five among the first five.

    Of classes with equal logits the lower number is first, as with `argmax`; logits that are not
    finite have no right class among them.
    """

    def __init__(self, num_classes: int) -> None:
        self.hits = {top: 0 for top in (1, 5) if num_classes >= top}

    def add(self, image: Prepared, outputs: Outputs) -> None:
        if image.label is None:
            raise InputError(f"image {image.name} has no label", "give one for every image")
        place = place_of(image.label, outputs[names.LOGITS])
        self.images += 1
        for top in self.hits:
            self.hits[top] += place < top

    def values(self) -> dict[str, float]:
        return {_key(top): hits / self.images for top, hits in self.hits.items()}

    def measures(self, seed: int, progress: Callable[[float], None]) -> list[Measure]:
        return [
            Measure(
                _key(top),
                f"top-{top} accuracy",
                hits / self.images,
                *wilson_interval(hits, self.images),
                style=".2%",
            )
            for top, hits in self.hits.items()
        ]


def place_of(label: int, logits: np.ndarray) -> int:
    """A class's place among the logits `[K]`, from 0; behind all where one is not finite."""
    if not np.isfinite(logits).all():
        return len(logits)
    own = logits[label]
    return int((logits > own).sum() + (logits[:label] == own).sum())


def _key(top: int) -> str:
    return f"top{top}_accuracy"
