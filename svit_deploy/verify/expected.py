"""What a bundle is verified against: the PyTorch reference, or what the export recorded of it."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from svit_deploy.bundle import Bundle
from svit_deploy.config import ModelConfig, TokenMode
from svit_deploy.errors import InputError
from svit_deploy.export import names
from svit_deploy.images import ImageSet
from svit_deploy.models import Model, config_to_dict, without_gates

BATCH = 16
CHOSEN = frozenset({"image_size", "thresholds", "target_keep"})
"""Fields of a model's configuration that an export may choose; the checkpoint gives the others."""


@dataclass(frozen=True)
class Expected:
    """Inputs and what the reference computes for them.

    Attributes:
        inputs: `[n, 3, H, W]` float32, as the graph gets them.
        logits: `[n, classes]`.
        keep_mask, margin: `[n, G, S]`.
        source, lead: `[n, G, S]`, for a method that merges tokens.
        features: feature maps `[n, tokens, C]` after the embedding and each block; empty if
            unknown.
        values: the decisions as the graph holds them (`Method.values`).
    """

    inputs: np.ndarray
    logits: np.ndarray
    keep_mask: np.ndarray
    margin: np.ndarray
    source: np.ndarray | None = None
    lead: np.ndarray | None = None
    features: list[np.ndarray] = field(default_factory=list)
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, images: slice) -> Expected:
        return Expected(
            self.inputs[images],
            self.logits[images],
            self.keep_mask[images],
            self.margin[images],
            None if self.source is None else self.source[images],
            None if self.lead is None else self.lead[images],
            [features[images] for features in self.features],
            {name: value[images] for name, value in self.values.items()},
        )


class Expectations(ABC):
    """A source of expected outputs, read in parts of some images each.

    Attributes:
        count: images, at least 1.
        has_features: whether feature maps are known, so that each stage can be run by itself.
        labels: `[count]`, if known.
        differences: a check's name to the settings in which the bundle differs from the reference.
        notes: what else a reader of the verdict should know.
    """

    description: str
    count: int
    has_features: bool
    labels: np.ndarray | None = None
    differences: Mapping[str, list[str]] = MappingProxyType({})
    notes: tuple[str, ...] = ()

    @abstractmethod
    def parts(self) -> Iterator[Expected]:
        """All images in order."""

    @abstractmethod
    def extreme(self, part: Expected, keep: str) -> Expected | None:
        """What the reference computes when every gate keeps "all" or "none", if it can be run."""


class Recorded(Expectations):
    """The bundle's reference.npz: no PyTorch needed, no feature maps, no extreme runs."""

    has_features = False

    def __init__(self, bundle: Bundle) -> None:
        arrays, config = bundle.load_reference(), bundle.config
        keep, margin = arrays["keep_mask"], arrays["margin"]
        if bundle.method.counted:
            known = bundle.method.values(config) | bundle.method.hints(config)
            values = {name: arrays[name] for name in known}
        else:
            gates = range(config.num_gates)
            values = {names.decision_name(gate): keep[:, gate] for gate in gates}
            values |= {names.margin_name(gate): margin[:, gate] for gate in gates}
        found = bundle.method.trace(config, values, len(keep))
        self.arrays = Expected(
            arrays["images"],
            arrays["logits"],
            keep,
            margin,
            found.source,
            found.lead,
            values=values,
        )
        self.labels = arrays.get("labels")
        self.count = count_images(self.arrays.inputs)
        self.description = f"reference recorded at export ({self.count} images)"

    def parts(self) -> Iterator[Expected]:
        for start in range(0, self.count, BATCH):
            yield self.arrays[start : start + BATCH]

    def extreme(self, part: Expected, keep: str) -> Expected | None:
        return None


class Recomputed(Expectations):
    """The checkpoint's plain PyTorch forward on given images.

    What an export chooses is taken from the bundle: image size, thresholds, budgets, and whether
    there are gates at all. Everything else must be the checkpoint's, and is compared with it.

    Args:
        model: the checkpoint, loaded independently.
        images: what to run, or the bundle's own recorded inputs if None.
        batch: images that the graph and the reference get at once.
    """

    has_features = True

    def __init__(
        self, bundle: Bundle, model: Model, images: ImageSet | None, *, batch: int = BATCH
    ) -> None:
        from svit_deploy.models.reference import Reference, keep_above, keep_budget

        self.rows, exported = bundle.budget_rows, bundle.config
        if bundle.mode is TokenMode.DENSE:
            model = without_gates(model)
        self.differences = compare_configs(exported, model.config)
        self.notes = tuple(_notes(bundle, model))
        chosen = {name: getattr(exported, name) for name in CHOSEN}
        if not self.differences["configuration"]:  # else they may not fit the model
            model = dataclasses.replace(model, config=dataclasses.replace(model.config, **chosen))
        self.reference = Reference(model)
        self.rule = keep_budget(keep_above(exported.thresholds), self.rows)
        if images is None:
            recorded = bundle.load_reference()
            self.inputs, self.labels = recorded["images"], recorded.get("labels")
        else:
            self.inputs = images.inputs(exported.preprocess, exported.image_size)
            self.labels = images.labels
        self.count, self.batch = count_images(self.inputs), batch
        self.description = f"PyTorch reference ({self.count} images)"

    def parts(self) -> Iterator[Expected]:
        for start in range(0, self.count, self.batch):
            inputs = self.inputs[start : start + self.batch]
            outputs = self.reference.run(inputs, self.rule, batch=self.batch, features=True)
            yield Expected(
                inputs,
                outputs.logits,
                outputs.keep_mask,
                outputs.margin,
                outputs.source,
                outputs.lead,
                outputs.features,
                outputs.values,
            )

    def extreme(self, part: Expected, keep: str) -> Expected | None:
        from svit_deploy.models.reference import keep_all, keep_budget, keep_none

        everything = keep_all if keep == "all" else keep_none
        outputs = self.reference.run(part.inputs, keep_budget(everything, self.rows))
        return Expected(part.inputs, outputs.logits, outputs.keep_mask, outputs.margin)


def count_images(inputs: np.ndarray) -> int:
    """How many there are, at least one; raises InputError."""
    if not len(inputs):
        raise InputError("there is no image to verify on", "give some with --images")
    return len(inputs)


def compare_configs(exported: ModelConfig, given: ModelConfig) -> dict[str, list[str]]:
    """Differences in words that an export may not make: in preprocessing (`inputs`), elsewhere."""

    def differ(of_bundle: dict[str, Any], of_checkpoint: dict[str, Any]) -> list[str]:
        return [
            f"{name} is {of_bundle[name]} in the bundle, {of_checkpoint[name]} in the checkpoint's"
            for name in of_bundle
            if of_bundle[name] != of_checkpoint[name]
        ]

    ours, theirs = config_to_dict(exported), config_to_dict(given)
    inputs = differ(ours.pop("preprocess"), theirs.pop("preprocess"))
    for name in CHOSEN:
        del ours[name], theirs[name]
    return {"configuration": differ(ours, theirs), "inputs": inputs}


def _notes(bundle: Bundle, model: Model) -> Iterator[str]:
    recorded, checkpoint = bundle.manifest.get("checkpoint"), model.checkpoint
    if recorded and checkpoint and recorded["sha256"] != checkpoint.sha256:
        yield f"the bundle was exported from another file, {recorded['name']}"
    thresholds = bundle.config.thresholds
    if thresholds != model.config.thresholds:
        values = ", ".join(f"{threshold:.4g}" for threshold in thresholds)
        yield f"the bundle's own thresholds are used, as chosen at export: {values}"
