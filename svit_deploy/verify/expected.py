"""What a bundle is verified against: the PyTorch reference, or what the export recorded of it."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from svit_deploy.bundle import Bundle
from svit_deploy.errors import InputError
from svit_deploy.images import Images
from svit_deploy.images.prepared import Prepared, groups
from svit_deploy.loading.serialise import config_to_dict
from svit_deploy.model.config import ModelConfig, TokenMode
from svit_deploy.model.model import Model, without_gates
from svit_deploy.model.precision import FORMATS
from svit_deploy.model.result import Result
from svit_deploy.tasks import Part, Task
from svit_deploy.tasks.samples import prepare_all
from svit_deploy.verify.words import number_of

CHOSEN = frozenset({"image_size", "thresholds", "target_keep"})
"""Fields of a model's configuration that an export may choose; the checkpoint gives the others."""


class Given(NamedTuple):
    """Images of one size that run together.

    Attributes:
        known: what is expected of them, where that is known without a run.
        corner: whether it is an image of an extreme size that is not among those given.
    """

    images: Sequence[Prepared]
    known: Part | None = None
    corner: bool = False


class ExpectedResults(ABC):
    """A source of expected results, read in parts of some images each.

    Attributes:
        count: images, at least 1.
        has_stages: whether it is known what each stage gave, so that each can be run by itself.
        has_rounded: whether parts tell what rounded weights give (`Part.rounded`).
        differences: a check's name to the settings in which the bundle differs from the reference.
        notes: what else a reader of the verdict should know.
        model: the checkpoint, with what the export chose; None where it was not given.
    """

    description: str
    count: int
    has_stages: bool
    has_rounded: bool = False
    differences: Mapping[str, list[str]] = MappingProxyType({})
    notes: tuple[str, ...] = ()
    model: Model | None = None

    @abstractmethod
    def given(self) -> Iterator[Given]:
        """All images in order, then one of each extreme size that is not among them."""

    @abstractmethod
    def part(self, given: Given) -> Part:
        """What is expected of some of them."""

    def parts(self) -> Iterator[Part]:
        """What is expected of all but those of extreme sizes."""
        return (self.part(given) for given in self.given() if not given.corner)

    @abstractmethod
    def extreme(self, images: Sequence[Prepared], keep: Literal["all", "none"]) -> Result | None:
        """What is expected when every gate keeps all or none of its tokens, if it is known."""


NOT_COMPARED = (
    "without --against CHECKPOINT these are not compared: configuration and preprocessing, each "
    "stage by itself, and what comes out with all tokens kept and with none"
)


class StoredReference(ExpectedResults):
    """The bundle's reference.npz: no PyTorch needed, no stages, no extreme runs."""

    has_stages = False

    def __init__(self, bundle: Bundle) -> None:
        self.samples = bundle.load_samples()
        self.has_rounded = all(part.rounded is not None for part in self.samples)
        self.notes = (NOT_COMPARED,)
        self.count = _at_least_one(sum(map(len, self.samples)))
        self.description = f"reference recorded at export ({number_of(self.count, 'image')})"

    def given(self) -> Iterator[Given]:
        return (Given(part.images, part) for part in self.samples)

    def part(self, given: Given) -> Part:
        assert given.known is not None
        return given.known

    def extreme(self, images: Sequence[Prepared], keep: Literal["all", "none"]) -> Result | None:
        return None


class LiveReference(ExpectedResults):
    """The checkpoint's plain PyTorch forward on given images.

    What an export chooses is taken from the bundle: image size, thresholds, budgets, and whether
    there are gates at all. Everything else must be the checkpoint's, and is compared with it.

    Args:
        model: the checkpoint, loaded independently.
        images: what to run, or the bundle's own samples if None.
        together: images that the graph and the reference get at once; as many as the bundle says by
            default.
    """

    has_stages = True

    def __init__(
        self,
        bundle: Bundle,
        model: Model,
        images: Images | None = None,
        *,
        together: int | None = None,
    ) -> None:
        from svit_deploy.tasks.reference import Reference

        if bundle.mode is TokenMode.DENSE:
            model = without_gates(model)
        self.differences = compare_configs(bundle.config, model.config)
        self.notes = tuple(_notes(bundle, model))
        if not self.differences["configuration"]:  # else they may not fit the model
            chosen = {name: getattr(bundle.config, name) for name in CHOSEN}
            model = dataclasses.replace(model, config=dataclasses.replace(model.config, **chosen))
        self.bundle, self.pictures = bundle, images
        self.model, self.reference = model, Reference(model, bundle.task, bundle.steps)
        self.has_rounded = bundle.precision != "fp32"
        self.together = together or bundle.together
        self.samples = [i for part in bundle.load_samples() for i in part.images]
        self.count = _at_least_one(len(self.samples if images is None else images))
        self.description = f"PyTorch reference ({number_of(self.count, 'image')})"

    def images(self) -> Iterator[Prepared]:
        """Each when it is its turn: large ones do not all fit into memory."""
        if self.pictures is None:
            return iter(self.samples)
        bundle = self.bundle
        images = prepare_all(self.pictures, bundle.task, bundle.config, bundle.sizes)
        return map(bundle.task.excerpt, images)

    def given(self) -> Iterator[Given]:
        images, bundle, seen = self.images(), self.bundle, set[tuple[int, int]]()
        while some := list(islice(images, self.together)):
            for group in groups(some, self.together):
                seen.add(group[0].size)
                yield Given(group)
        if self.pictures is None or seen.issuperset(bundle.sizes.corners()):
            return
        for image in bundle.task.paint(bundle.config, bundle.sizes, 0, seen)[0]:
            yield Given([image], corner=True)

    def part(self, given: Given) -> Part:
        """The decisions are the bundle's, within its budgets."""
        from svit_deploy.backbones.rules import keep_above, keep_budget

        bundle, images = self.bundle, given.images
        rule = keep_budget(keep_above(bundle.config.thresholds), bundle.rows(images[0].size))
        return self.reference.part(images, rule, bundle.precision, stages=True)

    def __getstate__(self) -> dict[str, Any]:
        """Without the pictures: what is expected of some can be told wherever these are sent."""
        return vars(self) | {"pictures": None}

    def extreme(self, images: Sequence[Prepared], keep: Literal["all", "none"]) -> Result | None:
        from svit_deploy.backbones.rules import keep_all, keep_budget, keep_none

        decide = keep_all if keep == "all" else keep_none
        reference = self.reference
        if self.bundle.precision in FORMATS:  # what rounding moves was measured on other decisions
            reference = reference.with_weights_in(self.bundle.precision, inputs=True)
        return reference.run(images, keep_budget(decide, self.bundle.rows(images[0].size)))


def refuse_non_finite(part: Part, task: Task, barred: bool) -> None:
    """Raises InputError where the reference itself computes nothing that could be compared.

    Args:
        barred: whether a token may be out of a gate's reach, its margin -inf.
    """
    margin = part.result.selected.margin
    broken = np.isnan(margin) | (np.isneginf(margin) & (not barred))
    if broken.any() or not all(map(task.finite, part.result.outputs)):
        raise InputError(
            f"the reference's own {task.noun} or margins are not finite",
            "check the checkpoint and the images: nothing can be compared with NaN",
        )


def compare_configs(exported: ModelConfig, given: ModelConfig) -> dict[str, list[str]]:
    """Differences in words that an export may not make: in preprocessing (`inputs`), elsewhere."""

    def differ(of_bundle: dict[str, Any], of_checkpoint: dict[str, Any]) -> list[str]:
        return [
            f"{name} is {of_bundle.get(name)} in the bundle, {of_checkpoint.get(name)} in the "
            "checkpoint's"
            for name in dict.fromkeys([*of_bundle, *of_checkpoint])
            if of_bundle.get(name) != of_checkpoint.get(name)
        ]

    ours, theirs = config_to_dict(exported), config_to_dict(given)
    inputs = differ(ours.pop("preprocess"), theirs.pop("preprocess"))
    for name in CHOSEN:
        del ours[name], theirs[name]
    return {"configuration": differ(ours, theirs), "inputs": inputs}


def _at_least_one(images: int) -> int:
    """How many images there are; raises InputError for none."""
    if not images:
        raise InputError("there is no image to verify on", "give some with --images")
    return images


def _notes(bundle: Bundle, model: Model) -> Iterator[str]:
    recorded, checkpoint = bundle.manifest.get("checkpoint"), model.checkpoint
    if recorded and checkpoint and recorded["sha256"] != checkpoint.sha256:
        yield f"the bundle was exported from another file, {recorded['name']}"
    thresholds = bundle.config.thresholds
    if thresholds != model.config.thresholds:
        values = ", ".join(f"{threshold:.4g}" for threshold in thresholds)
        yield f"the bundle's own thresholds are used, as chosen at export: {values}"
