"""What a fault really does: on many images, against what rounding does there.

A mutant is *equivalent* if no output and no decision of it differs from the unbroken export's by
more than twice what rounding made of that export: so far apart may two correct ones be. Rounding is
the distance of the unbroken export from the float32 reference on the same images and the
reference's decisions, in the same arithmetic, and never less than a step of float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from svit_deploy.backbones.rules import keep_above, keep_budget
from svit_deploy.bundle import Bundle
from svit_deploy.graph.edit import add_outputs
from svit_deploy.images import synthetic_images
from svit_deploy.images.prepared import Prepared
from svit_deploy.model.model import Model
from svit_deploy.model.result import Outputs, Result
from svit_deploy.tasks import Runs
from svit_deploy.verify.decisions import compare_selections, margin_drift
from svit_deploy.verify.expected import LiveReference
from svit_deploy.verify.exported import ModelUnderTest
from svit_deploy.verify.forced_decisions import decisions_of, forced_graph
from svit_deploy.verify.report import VerifyReport
from svit_deploy.verify.settings import VerifySettings

STEP = float(np.finfo(np.float32).eps)
TWICE = 2.0
FAILED = "does not run"
PAINTED, NOISY = 26, 6
"""Images of one size: with the flat ones more than the largest batch of a bundle."""


@dataclass(frozen=True)
class Effect:
    """The largest difference from the unbroken export, in units of rounding.

    Attributes:
        what: the output that differs by it.
        decisions: those that differ beyond rounding.
    """

    times: float
    what: str
    decisions: int

    @property
    def runs(self) -> bool:
        return not self.what.startswith(FAILED)

    @property
    def none(self) -> bool:
        """Whether the mutant is equivalent."""
        return self.times <= TWICE and not self.decisions


class Effects:
    """Measures what faults do to one bundle.

    Args:
        model: the checkpoint, for the reference.
    """

    def __init__(self, bundle: Bundle, model: Model) -> None:
        self.bundle = bundle
        live = LiveReference(bundle, model)
        decide = keep_above(bundle.config.thresholds)
        self.images = broad_images(bundle)
        self.expected = [
            live.reference.run(images, keep_budget(decide, bundle.rows(images[0].size)))
            for images in self.images
        ]
        self.own = self._run(bundle)
        self.model = self._model(bundle)
        rounded = self._run_as_expected()
        self.rounding = self._differences(rounded, self.expected)
        pairs = zip(rounded, self.expected, strict=True)
        drifts = [margin_drift(mine.selected, theirs.selected) for mine, theirs in pairs]
        self.drift = np.maximum(np.max(drifts, axis=0), STEP)

    def measure(self, folder: Path) -> Effect:
        """Of the bundle in a folder, whose graph has a fault and whose manifest is the same."""
        try:
            found = self._run(replace(self.bundle, path=folder))
        except Exception as error:  # a broken graph may fail in any way
            return Effect(np.inf, f"{FAILED} ({type(error).__name__})", 0)
        times = {"nothing": 0.0} | {
            name: error / max(self.rounding.get(name, 0.0), STEP)
            for name, error in self._differences(found, self.own).items()
        }
        decisions = 0
        parts = zip(found, self.own, self.expected, self.images, strict=True)
        for mine, theirs, expected, images in parts:
            if not self.drift.size:
                continue
            drift = margin_drift(mine.selected, theirs.selected) / self.drift
            worst = int(drift.argmax())
            times[f"margins of gate {worst}"] = float(drift[worst])
            decisions += self._flips(mine, theirs, expected, images[0].size)
            told, known = mine.selected.overflow, theirs.selected.overflow
            same = np.array_equal(mine.selected.keep_mask, theirs.selected.keep_mask)
            if same and known is not None and not np.array_equal(told, known):
                times["overflow"] = np.inf
        what = max(times, key=lambda name: times[name])
        return Effect(float(times[what]), what, decisions)

    def _model(self, bundle: Bundle) -> ModelUnderTest:
        settings = VerifySettings(threads=1)
        return ModelUnderTest(bundle, settings, VerifyReport(bundle, 1, ""))

    def _run(self, bundle: Bundle) -> list[Result]:
        """All images, halves computed as a GPU does."""
        model = self._model(bundle)
        with model.engine(model.in_view()) as engine:
            return [model.observe(engine, images) for images in self.images]

    def _run_as_expected(self) -> list[Result]:
        """All images on the reference's decisions: nothing that differs follows from a flip."""
        model, parts = self.model, []
        decisions = decisions_of(model)
        margins = [name for name in model.values if name not in decisions]
        with model.engine(add_outputs(forced_graph(model), margins)) as engine:
            for images, expected in zip(self.images, self.expected, strict=True):
                given = {name: np.ascontiguousarray(expected.values[name]) for name in decisions}
                found = engine.run({**model.task.feeds(images), **given})
                config = model.config.at(images[0].size)
                told = model.method.decode_selection(config, {**found, **given}, len(images))
                selected = replace(expected.selected, margin=told.margin)
                parts.append(Result(model.task.read(found, images, model.config), selected))
        return parts

    def _flips(self, mine: Result, theirs: Result, expected: Result, size: tuple[int, int]) -> int:
        """Decisions that differ where rounding explains none."""
        # The reference alone tells how near the next token was that one could merge into.
        known = replace(theirs.selected, lead=expected.selected.lead)
        rows = self.bundle.rows(size)
        rounding, scales = TWICE * self.drift, np.ones_like(self.drift)
        config = self.bundle.config
        flips = compare_selections(
            mine.selected, known, self.model.thresholds, rows, rounding, scales, config
        )
        return sum(flip.faults for flip in flips)

    def _differences(self, mine: Sequence[Result], theirs: Sequence[Result]) -> dict[str, float]:
        """The largest difference of each output, in images of the same decisions."""
        largest: dict[str, float] = {}
        for a, b in zip(mine, theirs, strict=True):
            same = ~(a.selected.decisions != b.selected.decisions).any(axis=(1, 2))
            for number in np.flatnonzero(same):
                for name, error in self._of_outputs(a.outputs[number], b.outputs[number]).items():
                    largest[name] = max(largest.get(name, 0.0), error)
        return largest

    def _of_outputs(self, mine: Outputs, theirs: Outputs) -> dict[str, float]:
        """The task's own numbers for one image."""
        task, config = self.bundle.task, self.bundle.config
        runs = Runs([mine], [theirs], config, task.limits[self.bundle.precision])
        return dict(_numbers("", task.judge([mine], runs).results))


def _numbers(name: str, found: Any) -> Iterator[tuple[str, float]]:
    """The errors in what a task says of two runs, by name."""
    if isinstance(found, Mapping):
        for key, value in found.items():
            yield from _numbers(key, value)
    elif name == "mask_iou":
        yield name, 1 - found
    elif name == "lone":
        yield name, float(len(found))
    elif isinstance(found, int | float) and name not in ("detections", "matched"):
        yield name, float(found)


def broad_images(bundle: Bundle) -> list[list[Prepared]]:
    """Painted and noisy images, those of a list of one size: what they run in is one batch."""
    if bundle.sizes.fixed:
        return [_images(bundle, bundle.sizes.opt, PAINTED, NOISY)]
    smallest, largest = bundle.sizes.min, bundle.sizes.max
    wide = (smallest[0], largest[1])
    sizes = {smallest: 20, bundle.sizes.opt: 3, wide: 2, largest: 2}
    return [_images(bundle, size, count, 1) for size, count in sizes.items()]


def _images(bundle: Bundle, size: tuple[int, int], painted: int, noisy: int) -> list[Prepared]:
    config, rng = bundle.config.at(size), np.random.default_rng(3)
    shape = (1, *config.input_shape) if config.frames else config.input_shape  # of one view
    noise = [
        Prepared.whole(deviation * rng.standard_normal(shape, np.float32))
        for deviation in np.linspace(0.5, 2, noisy, dtype=np.float32)
    ]
    if bundle.sizes.fixed:
        return [*bundle.task.paint(config, bundle.sizes, painted)[0], *noise]
    pictures = synthetic_images(painted, size).inputs(config.preprocess, size)
    images = [*map(Prepared.whole, pictures), *noise]
    # Of free sizes, every second one is padded, and of a picture that was smaller.
    return [padded(image) if number % 2 else image for number, image in enumerate(images)]


def padded(image: Prepared) -> Prepared:
    """The image, its last rows and columns blank, of a picture of two thirds and half its size."""
    height, width = (side - side // 8 for side in image.size)
    pixels = image.pixels.copy()
    pixels[:, height:], pixels[:, :, width:] = 0, 0
    return replace(image, pixels=pixels, image_size=(height, width), scale=(2.0, 1.5, 2.0, 1.5))
