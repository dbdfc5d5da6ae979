"""What a bundle is verified against: the PyTorch reference, or what the export recorded of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from svit_deploy.bundle import Bundle
from svit_deploy.errors import InputError
from svit_deploy.images import ImageSet
from svit_deploy.models import Model

BATCH = 16


@dataclass(frozen=True)
class Expected:
    """Inputs and what the reference computes for them.

    Attributes:
        inputs: `[n, 3, H, W]` float32, as the graph gets them.
        logits: `[n, classes]`.
        keep_mask, margin: `[n, G, S]`.
        features: feature maps `[n, S, C]` after the embedding and each block; empty if unknown.
    """

    inputs: np.ndarray
    logits: np.ndarray
    keep_mask: np.ndarray
    margin: np.ndarray
    features: list[np.ndarray] = field(default_factory=list)

    def __getitem__(self, images: slice) -> Expected:
        return Expected(
            self.inputs[images],
            self.logits[images],
            self.keep_mask[images],
            self.margin[images],
            [features[images] for features in self.features],
        )


class Expectations(ABC):
    """A source of expected outputs, read in parts of at most `BATCH` images."""

    description: str
    thresholds: tuple[float, ...]
    count: int
    labels: np.ndarray | None = None

    @abstractmethod
    def parts(self) -> Iterator[Expected]:
        """All images in order."""

    @abstractmethod
    def extreme(self, part: Expected, keep: str) -> Expected | None:
        """What the reference computes when every gate keeps "all" or "none", if it can be run."""

    def input_difference(self) -> float:
        """Largest difference between the graph's inputs and the reference's; 0 if shared."""
        return 0.0


class Recorded(Expectations):
    """The bundle's reference.npz: no PyTorch needed, no feature maps, no extreme runs."""

    def __init__(self, bundle: Bundle) -> None:
        arrays = bundle.load_reference()
        try:
            self.arrays = Expected(
                arrays["images"], arrays["logits"], arrays["keep_mask"], arrays["margin"]
            )
        except KeyError as error:
            raise InputError(
                f"the bundle's reference.npz has no {error}", "run the export again"
            ) from error
        self.count, self.labels = len(self.arrays.inputs), arrays.get("labels")
        self.thresholds = bundle.config.thresholds
        self.description = f"reference recorded at export ({self.count} images)"

    def parts(self) -> Iterator[Expected]:
        for start in range(0, self.count, BATCH):
            yield self.arrays[start : start + BATCH]

    def extreme(self, part: Expected, keep: str) -> Expected | None:
        return None


class Recomputed(Expectations):
    """The checkpoint's plain PyTorch forward on given images.

    Args:
        bundle: its thresholds and budgets are applied; its preprocessing makes the graph's input.
        model: the checkpoint, loaded independently; its preprocessing makes the reference's.
        images: pictures, or the bundle's own recorded inputs if None.
    """

    def __init__(self, bundle: Bundle, model: Model, images: ImageSet | None) -> None:
        from svit_deploy.models.reference import Reference, keep_above, keep_budget

        self.bundle, self.rows = bundle, bundle.budget_rows
        self.reference = Reference(model)
        self.thresholds = model.config.thresholds
        rule = keep_above(self.thresholds)
        self.rule = keep_budget(rule, self.rows) if self.rows else rule
        if images is None:
            recorded = bundle.load_reference()
            self.inputs = self.reference_inputs = recorded["images"]
            self.labels = recorded.get("labels")
        else:
            self.inputs = images.inputs(bundle.config.preprocess, bundle.config.image_size)
            self.reference_inputs = self.inputs
            if model.config.preprocess != bundle.config.preprocess:
                self.reference_inputs = images.inputs(
                    model.config.preprocess, model.config.image_size
                )
            self.labels = images.labels
        self.count = len(self.inputs)
        self.description = f"PyTorch reference ({self.count} images)"

    def input_difference(self) -> float:
        return float(np.max(np.abs(self.inputs - self.reference_inputs), initial=0.0))

    def parts(self) -> Iterator[Expected]:
        for start in range(0, self.count, BATCH):
            inputs = self.inputs[start : start + BATCH]
            reference_inputs = self.reference_inputs[start : start + BATCH]
            outputs = self.reference.run(reference_inputs, self.rule, features=True)
            yield Expected(
                inputs, outputs.logits, outputs.keep_mask, outputs.margin, outputs.features
            )

    def extreme(self, part: Expected, keep: str) -> Expected | None:
        from svit_deploy.models.reference import keep_all, keep_budget, keep_none

        rule = keep_all if keep == "all" else keep_none
        if self.rows:
            rule = keep_budget(rule, self.rows)
        outputs = self.reference.run(part.inputs, rule)
        return Expected(part.inputs, outputs.logits, outputs.keep_mask, outputs.margin)
