"""The model under verification: its graph, variants of it, and what can be seen of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from types import MappingProxyType

import numpy as np
import onnx

from svit_deploy import names
from svit_deploy.bundle import Bundle
from svit_deploy.engines.base import Engine
from svit_deploy.engines.runtimes import ONNXRUNTIME, check_options
from svit_deploy.engines.settings import EngineChoice
from svit_deploy.errors import UsageError
from svit_deploy.graph.builder import FLOAT, PRECISIONS
from svit_deploy.graph.edit import add_outputs
from svit_deploy.graph.half_precision import emulate_halves, inline_functions, view_in_float32
from svit_deploy.graph.quantised import with_exact_inputs
from svit_deploy.images.prepared import Prepared
from svit_deploy.inference.engine import choose, computed_in, open_bundle_engine
from svit_deploy.model.result import Outputs, Result, Selected
from svit_deploy.tasks import Runs
from svit_deploy.tasks.limits import Limits
from svit_deploy.verify.decisions import GateFlips, compare_selections, effective_keep
from svit_deploy.verify.report import VerifyReport
from svit_deploy.verify.settings import VerifySettings
from svit_deploy.verify.words import decisions_in_words, number_of

HANDFUL = 3
"""Decisions that may flip however few there are."""


class ModelUnderTest:
    """A bundle's graph, variants of it, and the thresholds that its manifest promises.

    What several checks run as it is stays open for them, until `close`.

    Attributes:
        values: what of the graph decides, by name (`Method.values`), at the typical image size.
        scales: `[G]`, what an error of a margin is measured in, once margins are known.
        reach: `[G]`, how far rounding may move a margin, where that was measured.
        float32: limits of the graph where it computes in float32.
    """

    def __init__(self, bundle: Bundle, settings: VerifySettings, report: VerifyReport) -> None:
        self.bundle, self.settings, self.report = bundle, settings, report
        self.runtime, _ = choose(bundle, settings)
        # What is edited is a graph: another engine runs it where one was built of it.
        self.graphs = ONNXRUNTIME if self.runs_engine else self.runtime
        check_options((self.runtime, self.graphs), settings)
        self.config, self.task = bundle.config, bundle.task
        self.limits = self._limits()
        self.float32 = self.task.limits["fp32"]
        self.model = self._editable(inline_functions(bundle.load_model()))
        self.method, self.gates = bundle.family.method, range(self.config.num_gates)
        self.values = self.method.values(self.config)
        lowest = (float(np.finfo(np.float32).min),) * len(self.gates)
        self.thresholds = np.array(self.config.thresholds or lowest, np.float32)
        self.scales = np.ones(len(self.gates))
        self.reach: np.ndarray | None = None
        self._kept: dict[str, Engine] = {}

    @property
    def rounding(self) -> np.ndarray:
        """How far rounding may move a margin of each gate `[G]`."""
        return self.limits.rounding * self.scales if self.reach is None else self.reach

    def rows(self, images: Sequence[Prepared]) -> np.ndarray | None:
        """Tokens `[G]` let through of images of one size; None where their number is free."""
        return self.bundle.rows(images[0].size)

    # What runs.

    def _limits(self) -> Limits:
        """The limits of the precision of the results.

        Raises:
            UsageError: the task's results do not survive it, or no limits are known.
        """
        bundle, precision = self.bundle, computed_in(self.bundle, self.settings)
        if precision != bundle.precision:
            if bundle.precision != "fp32":
                raise UsageError(
                    f"{bundle.name} was exported in {bundle.precision}, and nothing says what "
                    f"it may be off by in {precision}",
                    f"verify a bundle in fp32 or {precision}",
                )
            self.report.limits = self.task.limits[precision]
            self.report.notes.append(
                f"{self.runtime.name} computes in {precision}, whose limits are what counts"
            )
        return self.report.limits

    def _editable(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The graph with all that is fed or looked at in float32."""
        if PRECISIONS[self.bundle.precision] == FLOAT:
            return model
        if self.graphs.widens(self.bundle.precision, self.settings):
            self.report.notes.append(
                f"where its stages are looked at, {self.bundle.precision} is emulated: float32 "
                "operators, every result rounded"
            )
            return emulate_halves(model)
        return view_in_float32(model, [*self.bundle.stages, *self.task.inner()])

    def in_float32(self) -> onnx.ModelProto:
        """The graph with the same weights, computing in float32."""
        model = inline_functions(self.bundle.load_model())
        return with_exact_inputs(emulate_halves(model, exact=True))

    def computing_in_float32(self) -> ModelUnderTest:
        """The same with that graph in place of its own, on the CPU."""
        view = copy(self)
        view.model, view.limits, view.reach = self.in_float32(), self.float32, None
        view.graphs, view.settings = ONNXRUNTIME, VerifySettings(threads=self.settings.threads)
        view._kept = {}
        return view

    def engine(self, model: onnx.ModelProto, *, exact: bool = False) -> Engine:
        """Runs a graph on the engine under verification.

        Args:
            exact: on a processor instead, every operator in its own precision.
        """
        content = model.SerializeToString()
        if exact:
            choice = EngineChoice(threads=self.settings.threads)
            return ONNXRUNTIME.load(content, choice, self.bundle.precision)
        return self.graphs.load(content, self.settings, self.bundle.precision)

    @property
    def runs_engine(self) -> bool:
        """Whether what runs was built of the graph, so that it cannot be edited."""
        return not self.runtime.runs_graphs

    def file(self) -> AbstractContextManager[Engine]:
        """What the bundle ships, as it is: its engine or its graph."""
        return self._keep("file", lambda: open_bundle_engine(self.bundle, self.settings))

    def _keep(self, name: str, open_it: Callable[[], Engine]) -> AbstractContextManager[Engine]:
        if name not in self._kept:
            self._kept[name] = open_it()
        return nullcontext(self._kept[name])

    def close(self) -> None:
        while self._kept:
            self._kept.popitem()[1].close()

    @property
    def shows_gates(self) -> bool:
        """Whether the file as it is shows its gates, or has none."""
        return self.bundle.has_gate_outputs or not self.gates

    @property
    def promised(self) -> tuple[str, ...]:
        """Outputs of the graph that the manifest tells of."""
        gates = (names.KEEP_MASK, names.MARGIN) if self.bundle.has_gate_outputs else ()
        return (*self.task.outputs(), *gates)

    @property
    def observes_engine(self) -> bool:
        """Whether decisions and outputs are seen of an engine itself."""
        return self.runs_engine and self.shows_gates

    def in_view(self) -> onnx.ModelProto:
        """The graph with its gates and what is compared inside it in view, shipped so or not."""
        gates = () if self.shows_gates else tuple(self.values)
        return add_outputs(self.model, [*gates, *self.task.inner()])

    def in_view_as_it_runs(self) -> onnx.ModelProto:
        """The same in the arithmetic of the file itself, where this program can run that."""
        if self.graphs.lacks(self.bundle.precision, self.settings):
            return self.in_view()
        graph = inline_functions(self.bundle.load_model())
        return add_outputs(graph, [*self.values, *self.task.inner()])

    def shipped(self) -> AbstractContextManager[Engine]:
        """The file as it is; of a graph that hides some of what is compared, with that in view."""
        whole = self.runs_engine or set(self.task.inner()) <= set(self.task.outputs())
        if self.shows_gates and whole:
            return self.file()
        return self._keep("in view", lambda: self.engine(self.in_view()))

    # What it shows.

    def observe(
        self,
        engine: Engine,
        images: Sequence[Prepared],
        given: Mapping[str, np.ndarray] = MappingProxyType({}),
    ) -> Result:
        """Runs images of one size at once, with an engine that has the gates in view.

        Args:
            given: what the engine's graph takes beside the task's inputs.
        """
        outputs = engine.run({**self.task.feeds(images), **given})
        found = self.task.read(outputs, images, self.config)
        if names.MARGIN in outputs:
            seen = Selected(
                outputs[names.KEEP_MASK],
                outputs[names.MARGIN],
                outputs.get(names.SOURCE),
                overflow=outputs.get(names.OVERFLOW),
            )
            return Result(found, seen)
        config = self.config.at(images[0].size)
        told = self.method.decode_selection(config, outputs, len(images))
        keep = effective_keep(told.keep_mask, told.margin, self.rows(images))
        return Result(found, Selected(keep, told.margin, told.source))

    def outputs(self, engine: Engine, images: Sequence[Prepared]) -> list[Outputs]:
        """The same without the gates."""
        return self.task.read(engine.run(self.task.feeds(images)), images, self.config)

    # How it compares.

    @property
    def rule(self) -> str:
        """How the graph must decide, in words."""
        if not self.config.thresholds:
            return "margin, as many as the method keeps"
        return "margin > threshold, within the budget if there is one"

    def flips(
        self,
        actual: Selected,
        expected: Selected,
        rows: np.ndarray | None,
        thresholds: np.ndarray | None = None,
    ) -> list[GateFlips]:
        """Each gate's decisions compared, in images of one size."""
        thresholds = self.thresholds if thresholds is None else thresholds
        return compare_selections(
            actual, expected, thresholds, rows, self.rounding, self.scales, self.config
        )

    def explain_flips(self, flips: Sequence[GateFlips]) -> tuple[bool, str]:
        """Whether rounding explains all flips, and that in words."""
        for gate, flip in enumerate(flips):
            if not flip.faults:
                continue
            reach = f"margins up to {flip.largest_margin:.2g} from the cut where rounding "
            reach += f"explains {self.rounding[gate]:.2g}"
            if np.isinf(flip.largest_margin):
                reach = "some of which it must always keep"
            return False, (
                f"gate {gate} decides {number_of(flip.faults, 'token')} differently, {reach}"
            )
        return True, decisions_in_words(flips)

    def count_flips(self, flips: Sequence[GateFlips], predicted: float) -> tuple[bool, str]:
        """Whether few enough decisions differ, explained or not, and that in words.

        Args:
            predicted: how many the density of margins near their cuts lets expect.
        """
        flipped, decisions = sum(f.flips for f in flips), sum(f.tokens for f in flips)
        few = HANDFUL + max(self.limits.turned * decisions, predicted)
        return flipped <= few, f"{flipped} of {decisions}, at most {few:.0f} may"

    def explain_drift(self, drift: np.ndarray) -> tuple[bool, str]:
        """Whether rounding explains how far margins moved `[G]`, and that in words."""
        beyond = np.flatnonzero(~(drift <= self.rounding))
        if len(beyond):
            gate = beyond[0]
            return False, (
                f"those of gate {gate} differ by {drift[gate]:.2g} where rounding explains "
                f"{self.rounding[gate]:.2g}"
            )
        most = np.max(drift / self.scales, initial=0.0)
        return True, f"differ by at most {most:.2g}, in units of max(1, rms of the gate)"

    def runs(self, actual: Sequence[Outputs], expected: Sequence[Outputs]) -> Runs:
        """Two runs of the same images, as the task compares them."""
        return Runs(actual, expected, self.config, self.limits)

    def compare_outputs(
        self, actual: Sequence[Outputs], expected: Sequence[Outputs]
    ) -> tuple[bool, str]:
        """Whether two runs on the same decisions agree, and that in words.

        As many images at a time as run together: errors are relative to what those show.
        """
        most, said = self.bundle.together, []
        for start in range(0, max(len(expected), 1), most):
            part = slice(start, start + most)
            ok, words = self.task.compare(self.runs(actual[part], expected[part]))
            if not ok:
                return False, words
            said.append(words)
        return True, said[0]

    def compare(
        self,
        actual: Result,
        expected: Result,
        rows: np.ndarray | None,
        thresholds: np.ndarray | None = None,
    ) -> tuple[bool, str]:
        """Whether two runs differ by near ties alone, and agree where no decision differs.

        Args:
            rows, thresholds: what was let through, and the thresholds if not the model's own.
        """
        flips = self.flips(actual.selected, expected.selected, rows, thresholds)
        ok, detail = self.explain_flips(flips)
        if not ok:
            return False, detail
        same = ~(actual.selected.decisions != expected.selected.decisions).any(axis=(1, 2))
        ok, words = self.compare_outputs(actual[same].outputs, expected[same].outputs)
        return ok, f"{detail}, {words}" if ok and self.gates else words
