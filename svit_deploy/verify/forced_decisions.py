"""The graph on given decisions: what it computes where a near tie fell another way.

A flipped decision changes all that is computed from there on, and no limit could tell that from a
fault. So such images run on the reference's decisions, and an engine is held to its own graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx.helper import np_dtype_to_tensor_dtype

from svit_deploy.engines.base import Engine
from svit_deploy.graph.edit import add_outputs, force_values
from svit_deploy.images.prepared import Prepared
from svit_deploy.model.result import Outputs, Result
from svit_deploy.tasks import Part
from svit_deploy.verify.exported import ModelUnderTest
from svit_deploy.verify.words import number_of


def decisions_of(model: ModelUnderTest) -> list[str]:
    """Of the graph's values those that say what was selected."""
    return [name for name, (kind, _) in model.values.items() if kind is not np.float32]


def forced_graph(model: ModelUnderTest, graph: onnx.ModelProto | None = None) -> onnx.ModelProto:
    """The model's graph, or a variant of it, with these for inputs; what is compared is in view."""
    shapes: dict[str, tuple[int | str, ...]] = {}
    types = {}
    for name in decisions_of(model):
        kind, shape = model.values[name]
        free = [f"{name}.{axis}" for axis in range(len(shape))]
        shapes[name] = ("batch", *(shape if model.bundle.sizes.fixed else free))
        types[name] = np_dtype_to_tensor_dtype(np.dtype(kind))
    return add_outputs(force_values(graph or model.model, shapes, types), model.task.inner())


@dataclass(frozen=True)
class Forced:
    """What came out of some images, of those that flipped a decision without that flip.

    Attributes:
        wrong: how an engine differs from its graph on the engine's decisions, in words.
    """

    outputs: list[Outputs] = field(default_factory=list)
    flipped: int = 0
    wrong: tuple[str, ...] = ()


class ForcedDecisions:
    """Runs images that flipped a decision without that flip, and keeps count of them.

    A context manager; its engine is made when the first such image comes.
    """

    def __init__(self, model: ModelUnderTest) -> None:
        self.model, self.names = model, decisions_of(model)
        self.images = self.flipped = 0
        self.wrong: list[str] = []
        self._engine: Engine | None = None
        # Of a method that counts tokens, masks do not tell the decisions as the graph holds them.
        self.holds_engine = model.observes_engine and not model.method.counted

    def __enter__(self) -> ForcedDecisions:
        return self

    def __exit__(self, *_: object) -> None:
        if self._engine is not None:
            self._engine.close()

    def add(self, forced: Forced) -> None:
        """Counts some images."""
        self.images += len(forced.outputs)
        self.flipped += forced.flipped
        self.wrong += forced.wrong

    def run_flipped(self, part: Part, actual: Result) -> Forced:
        """What came out; of images that flipped a decision, on the reference's decisions.

        An engine is then compared with its own graph on the engine's decisions.

        Args:
            part: the images, and the reference's values.
        """
        mine, theirs = actual.selected, part.result.selected
        flipped = (mine.decisions != theirs.decisions).any(axis=(1, 2))
        outputs, wrong = list(actual.outputs), tuple[str, ...]()
        if not flipped.any():
            return Forced(outputs)
        numbers = np.flatnonzero(flipped)
        images = [part.images[number] for number in numbers]
        values = {name: part.result.values[name][flipped] for name in self.names}
        for number, found in zip(numbers, self.run(images, values), strict=True):
            outputs[number] = found
        if self.holds_engine:
            masks = mine.keep_mask[flipped].transpose(1, 0, 2)
            own = self.run(images, dict(zip(self.names, masks, strict=True)))
            ok, words = self.model.compare_outputs(actual[flipped].outputs, own)
            wrong = () if ok else (words,)
        return Forced(outputs, int(flipped.sum()), wrong)

    def run(self, images: Sequence[Prepared], values: Mapping[str, np.ndarray]) -> list[Outputs]:
        """Images of one size on given decisions."""
        if self._engine is None:
            self._engine = self.model.engine(forced_graph(self.model))
        task = self.model.task
        feeds = {name: np.ascontiguousarray(value) for name, value in values.items()}
        wanted = list(dict.fromkeys([*task.outputs(), *task.inner()]))
        found = self._engine.run(task.feeds(images) | feeds, wanted)
        return task.read(found, images, self.model.config)

    def judge(self) -> None:
        """Notes how many images there were, and how an engine compares with its graph."""
        if not self.flipped:
            return
        report, task = self.model.report, self.model.task
        several = "their" if self.flipped > 1 else "its"
        nouns = " and ".join(dict.fromkeys((task.staged, task.noun)))
        report.notes.append(
            f"{self.flipped} of {number_of(self.images, 'image')} flipped a decision; {several} "
            f"{nouns} are those of the graph on the reference's decisions"
        )
        if self.holds_engine:
            seen = f"in {number_of(self.flipped, 'image')} that flipped a decision"
            report.check("engine follows its graph", not self.wrong, (*self.wrong, seen)[0])
