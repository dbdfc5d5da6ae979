"""Images through a model and its reference: what is seen of each group, wherever that is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from svit_deploy.bundle import Bundle
from svit_deploy.engines.base import Engine
from svit_deploy.images.prepared import Prepared
from svit_deploy.inference.job import Opened
from svit_deploy.model.result import Outputs, Result, Selected
from svit_deploy.tasks import Part
from svit_deploy.verify.expected import ExpectedResults, Given, refuse_non_finite
from svit_deploy.verify.exported import ModelUnderTest
from svit_deploy.verify.forced_decisions import Forced, ForcedDecisions
from svit_deploy.verify.report import VerifyReport
from svit_deploy.verify.rounding import Moved, WholeRounding
from svit_deploy.verify.settings import VerifySettings
from svit_deploy.verify.stages import StageErrors, Stages


@dataclass(frozen=True)
class Beside:
    """What is seen of images of one size, beside the reference.

    Attributes:
        forced: of images that flipped a decision, what came out without that flip.
        stages: their errors, view by view.
    """

    actual: Result
    expected: Result
    forced: Forced
    stages: tuple[StageErrors, ...]
    moved: Moved


@dataclass(frozen=True)
class Compared:
    """Images of one size: what the file made of them, and what is expected.

    Attributes:
        images: without their pixels.
        forced: what came out, of images that flipped a decision without that flip.
        rows: `[G]`, tokens let through of each; None where their number is free.
        moved: `[n, G, S]`, how far half-precision weights move the reference's margins, if known.
    """

    images: tuple[Prepared, ...]
    actual: Result
    expected: Result
    forced: list[Outputs]
    rows: np.ndarray | None
    moved: np.ndarray | None

    @property
    def selected(self) -> tuple[Selected, Selected]:
        """Of the file and of the reference."""
        return self.actual.selected, self.expected.selected


class Comparison:
    """Runs the graph with forced decisions and as shipped beside the reference; a job.

    Each group of images is looked at by itself, and `add` takes in what was seen of one: in the
    same order it comes to the same, wherever the groups were run.

    Args:
        closes: whether what it opens of the model is for itself alone.
    """

    def __init__(
        self, model: ModelUnderTest, reference: ExpectedResults, *, closes: bool = False
    ) -> None:
        self.model, self.reference, self.closes = model, reference, closes
        alone = reference.has_stages
        self.views = [Stages(model, alone)]
        if reference.has_rounded:
            self.views.insert(0, Stages(model, alone, exact=True))
        self.forced, self.whole = ForcedDecisions(model), WholeRounding(model)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process makes it anew, of what was asked for; the images come one by one."""
        asked = dataclasses.replace(self.model.settings, images=None, labels=None, annotations=None)
        return _again, (self.model.bundle, asked, self.reference)

    @contextmanager
    def open(self) -> Iterator[Opened[Given, Beside]]:
        """Opens all engines; what is told is the description of that of the file as it is."""
        with ExitStack() as engines:
            if self.closes:
                engines.callback(self.model.close)
            staged = [engines.enter_context(view.engine()) for view in self.views]
            shipped = engines.enter_context(self.model.shipped())
            engines.enter_context(self.forced)

            def work(groups: Iterable[Given]) -> Iterator[Beside]:
                for given in groups:
                    yield self._beside(self.reference.part(given), given, staged, shipped)

            yield Opened(shipped.description, 1, work)

    def _beside(
        self, part: Part, given: Given, staged: Sequence[Engine], shipped: Engine
    ) -> Beside:
        model = self.model
        if not given.corner:
            refuse_non_finite(part, model.task, model.method.removes or model.method.bars)
        stages = [view.run(engine, part) for view, engine in zip(self.views, staged, strict=True)]
        actual = model.observe(shipped, part.images)
        forced = Forced() if given.corner else self.forced.run_flipped(part, actual)
        lean = Result(part.result.outputs, part.result.selected)
        return Beside(actual, lean, forced, tuple(stages), self.whole.moved(part))

    def add(self, images: Sequence[Prepared], beside: Beside) -> Compared:
        """Takes in what was seen of some images."""
        for view, errors in zip(self.views, beside.stages, strict=True):
            view.add(errors)
        self.forced.add(beside.forced)
        self.whole.add(beside.moved)
        return Compared(
            tuple(image.without_pixels() for image in images),
            beside.actual,
            beside.expected,
            beside.forced.outputs,
            self.model.rows(images),
            beside.moved.margins,
        )


def _again(bundle: Bundle, settings: VerifySettings, reference: ExpectedResults) -> Comparison:
    report = VerifyReport(bundle, reference.count, reference.description)
    return Comparison(ModelUnderTest(bundle, settings, report), reference, closes=True)
