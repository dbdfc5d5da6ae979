"""The model under verification: its graph, variants of it, and what can be seen of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from svit_deploy.bundle import Bundle
from svit_deploy.compare import GateFlips, compare_masks, decision_distance, effective_keep
from svit_deploy.engines.base import Engine
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.export import names
from svit_deploy.graph_edit import add_outputs
from svit_deploy.halves import emulate_halves, inline_functions, view_in_float32
from svit_deploy.verify.report import VerifyReport, decisions_in_words

HANDFUL = 3
"""Decisions that may turn however few there are."""


@dataclass(frozen=True)
class VerifySettings:
    """How to verify.

    Attributes:
        provider: as for `OnnxRuntimeEngine`; by default the bundle's engine, if it has one, else
            cpu. An engine cannot be taken apart: what needs edited graphs runs on cpu then.
        threads: as for `OnnxRuntimeEngine`.
        allow_foreign: run an engine without a sidecar.
        repeats: runs that must agree bit for bit.
        companions: images run alone and inside a batch.
    """

    provider: str | None = None
    threads: int = 0
    allow_foreign: bool = False
    repeats: int = 3
    companions: int = 8


@dataclass(frozen=True)
class Observed:
    """What a run shows, or should.

    Attributes:
        logits: `[n, classes]`.
        keep_mask, margin: `[n, G, S]`.
        overflow: `[n, G]` kept tokens beyond the budget; None where the graph does not tell.
        source, lead: `[n, G, S]`, for a method that merges tokens; the graph tells no lead.
    """

    logits: np.ndarray
    keep_mask: np.ndarray
    margin: np.ndarray
    overflow: np.ndarray | None = None
    source: np.ndarray | None = None
    lead: np.ndarray | None = None

    @property
    def decisions(self) -> np.ndarray:
        """What of a run must agree `[n, G, S]`: what was kept, or what became of each token."""
        return self.keep_mask if self.source is None else self.source

    def __getitem__(self, images: slice) -> Observed:
        return Observed(
            self.logits[images],
            self.keep_mask[images],
            self.margin[images],
            None if self.overflow is None else self.overflow[images],
            None if self.source is None else self.source[images],
            None if self.lead is None else self.lead[images],
        )

    @classmethod
    def concatenate(cls, parts: list[Observed]) -> Observed:
        overflow = [part.overflow for part in parts if part.overflow is not None]
        source = [part.source for part in parts if part.source is not None]
        lead = [part.lead for part in parts if part.lead is not None]
        return cls(
            np.concatenate([part.logits for part in parts]),
            np.concatenate([part.keep_mask for part in parts]),
            np.concatenate([part.margin for part in parts]),
            np.concatenate(overflow) if overflow else None,
            np.concatenate(source) if source else None,
            np.concatenate(lead) if lead else None,
        )


class Subject:
    """A bundle's graph, variants of it, and the thresholds that its manifest promises.

    Attributes:
        scales: `[G]`, what an error of a margin is measured in, once margins are known.
    """

    def __init__(self, bundle: Bundle, settings: VerifySettings, report: VerifyReport) -> None:
        self.bundle, self.config, self.settings = bundle, bundle.config, settings
        self.report = report
        self.limits = report.limits
        self.model = self._editable(inline_functions(bundle.load_model()))
        self.method, self.gates = bundle.method, range(self.config.num_gates)
        self.values = self.method.values(self.config)
        lowest = (float(np.finfo(np.float32).min),) * len(self.gates)
        self.thresholds = np.array(self.config.thresholds or lowest, np.float32)
        self.rows = np.array(bundle.budget_rows) if bundle.budget_rows else None
        self.scales = np.ones(len(self.gates))

    @property
    def rounding(self) -> np.ndarray:
        """How far rounding may move a margin of each gate `[G]`."""
        return self.limits.rounding * self.scales

    def _editable(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The graph with all that is fed or looked at in float32."""
        if self.bundle.precision == "fp32":
            return model
        if self.provider == "cpu":
            self.report.notes.append(
                f"where its stages are looked at, {self.bundle.precision} is emulated: float32 "
                "operators, every result rounded"
            )
            return emulate_halves(model)
        return view_in_float32(model, [*self.bundle.stages, *self.bundle.features])

    @property
    def provider(self) -> str:
        """Where edited graphs run."""
        return self.settings.provider or "cpu"

    def engine(self, model: onnx.ModelProto | Path) -> Engine:
        content = model if isinstance(model, Path) else model.SerializeToString()
        return OnnxRuntimeEngine(content, provider=self.provider, threads=self.settings.threads)

    @property
    def runs_engine(self) -> bool:
        """Whether what the bundle ships is an engine, which cannot be edited."""
        return self.bundle.engine_path is not None and self.settings.provider is None

    def file(self) -> Engine:
        """What the bundle ships, as it is: its engine or its graph."""
        bundle, settings = self.bundle, self.settings
        if self.runs_engine:
            return bundle.load_engine(allow_foreign=settings.allow_foreign)
        if bundle.precision == "bf16" and self.provider == "cpu":
            return self.engine(self.model)  # ONNX Runtime has no bfloat16 products there
        return self.engine(bundle.model_path)

    @property
    def shows_gates(self) -> bool:
        """Whether the file as it is shows all there is to see."""
        return self.bundle.has_gate_outputs or not self.gates

    def observable(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The graph with its gates in view, whether or not they are shipped as outputs."""
        if self.shows_gates:
            return model
        return add_outputs(model, self.values)

    def shipped(self) -> Engine:
        """The file as it is, its gates in view."""
        if self.shows_gates:
            return self.file()
        return self.engine(self.observable(self.model))

    def observe(self, engine: Engine, inputs: np.ndarray) -> Observed:
        outputs = engine.run({names.INPUT: inputs})
        logits = outputs[names.LOGITS]
        if names.MARGIN in outputs:
            extra = outputs.get(names.OVERFLOW), outputs.get(names.SOURCE)
            return Observed(logits, outputs[names.KEEP_MASK], outputs[names.MARGIN], *extra)
        found = self.method.trace(self.config, outputs, len(inputs))
        keep = effective_keep(found.keep_mask, found.margin, self.rows)
        return Observed(logits, keep, found.margin, source=found.source)

    @property
    def rule(self) -> str:
        """How the graph must decide, in words."""
        if not self.config.thresholds:
            return "margin, as many as the method keeps"
        return "margin > threshold, within the budget if there is one"

    def compare_decisions(
        self, actual: Observed, expected: Observed, thresholds: np.ndarray | None = None
    ) -> tuple[list[GateFlips], bool, str]:
        """Compares decisions given the expected margins.

        Returns:
            The flips of each gate, whether rounding explains them all, and that in words.
        """
        thresholds = self.thresholds if thresholds is None else thresholds
        distance = decision_distance(expected.margin, thresholds, self.rows)
        mine, theirs = actual.decisions, expected.decisions
        if expected.source is not None:
            # Patches follow the token that they are part of: only its own decision counts.
            own = ~np.isneginf(expected.margin)
            mine, theirs = np.where(own, mine, 0), np.where(own, theirs, 0)
            lead = np.full(own.shape, np.inf) if expected.lead is None else expected.lead
            # Leads are differences of cosines: in units of margins for the limits of those.
            lead = lead / 2 * self.scales[None, :, None]
            turned = actual.keep_mask != expected.keep_mask
            # Where one of the tokens that stay is another, those merged into it go elsewhere.
            lead = np.where(turned.any(axis=2, keepdims=True), 0, lead)
            distance = np.where(turned, distance, lead)
        flips = compare_masks(mine, theirs, distance, self.rounding, self.config)
        for gate, flip in enumerate(flips):
            if flip.faults:
                reach = f"margins up to {flip.largest_margin:.2g} from the cut where rounding "
                reach += f"explains {self.rounding[gate]:.2g}"
                if np.isinf(flip.largest_margin):
                    reach = "some of which it must always keep"
                words = f"gate {gate} decides {flip.faults} tokens differently, {reach}"
                return flips, False, words
        return flips, True, decisions_in_words(flips)

    def count_turned(self, flips: Sequence[GateFlips]) -> tuple[bool, str]:
        """Whether few enough decisions differ, explained or not, and that in words."""
        turned, decisions = sum(f.flips for f in flips), sum(f.tokens for f in flips)
        few = HANDFUL + self.limits.turned * decisions
        return turned <= few, f"{turned} of {decisions}, at most {few:.0f} may"
