"""What a verification saw, as a table and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from svit_deploy import __version__
from svit_deploy.bundle import Bundle
from svit_deploy.evaluate.report import Evaluation
from svit_deploy.machine.environment import describe_environment
from svit_deploy.model.assumption import in_words
from svit_deploy.pages.sections import Picture
from svit_deploy.tasks.limits import Limits
from svit_deploy.tasks.runs import Judgement
from svit_deploy.verify.decisions import GateFlips
from svit_deploy.verify.examples import Example
from svit_deploy.verify.margins import MarginHistogram
from svit_deploy.verify.words import decisions_in_words, number_of

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Check:
    """One thing that must hold: its name, whether it does, and what was seen."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Stage:
    """Largest error of one stage of the model, its inputs being the reference's.

    Attributes:
        value: the graph's value that it computes.
    """

    name: str
    value: str
    error: float
    limit: float


@dataclass(frozen=True)
class GateResult:
    """One gate of the model as shipped.

    Attributes:
        drift: largest difference of its margins where all decisions before it agree.
        rounding: how far rounding may move a margin: nearer to its cut, a decision may flip.
        keep, expected_keep: mean keep ratio of the graph and of the reference.
        margins: how the reference's margins lie.
    """

    gate: int
    block: int
    flips: GateFlips
    drift: float
    rounding: float
    keep: float
    expected_keep: float
    target_keep: float | None
    margins: MarginHistogram | None = None


@dataclass
class VerifyReport:
    """The outcome of a verification; `passed` is the verdict.

    Attributes:
        results: what the bundle's task says of its outputs, JSON-able.
        lines, summary: the same for the terminal, above the gates and below the checks.
        stages_in_float32: of a half-precision graph, those of its weights in float32 arithmetic.
        limits: what the differences are held against.
        examples: the first images, of a model that shows which tokens it keeps.
    """

    bundle: Bundle
    images: int
    reference: str
    engine: dict[str, Any] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    stages_in_float32: list[Stage] = field(default_factory=list)
    gates: list[GateResult] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    limits: Limits = field(init=False)

    def __post_init__(self) -> None:
        self.results = {**self.bundle.task.no_results, **self.results}
        self.limits = self.bundle.task.limits[self.bundle.precision]

    def check(self, name: str, passed: bool, detail: str) -> None:
        self.checks.append(Check(name, bool(passed), detail))

    def add(self, judgement: Judgement) -> None:
        """Takes in what a task says."""
        for check in judgement.checks:
            self.check(*check)
        self.notes += judgement.notes
        self.results |= judgement.results
        self.lines += judgement.lines
        self.summary += judgement.summary

    def evaluate(self, evaluation: Evaluation) -> None:
        """Takes in how good the exported model is on images beside those compared."""
        images = number_of(evaluation.images, "image")
        seen = f"NaN or infinity in {evaluation.broken} of {images}"
        self.check(
            "finite on the images given",
            not evaluation.broken,
            seen if evaluation.broken else f"in {images}",
        )
        self.results["evaluation"] = evaluation.results()
        self.summary.append(f"the exported model on {images} ({evaluation.told}):")
        self.summary += [f"  {measure}" for measure in evaluation.measures]
        count, others = 0, images
        if evaluation.recorded:
            count, judgement = evaluation.recorded
            said = "; ".join([*judgement.summary, *judgement.lines])
            self.summary.append(f"  on {count} of them, recorded at export: {said}")
            others = number_of(evaluation.images - count, "other image")
        if count < evaluation.images:
            self.notes.append(
                f"what the reference makes of {others} is not known without --against CHECKPOINT"
            )
        self.notes += evaluation.notes

    def maps(self) -> list[Picture]:
        """The examples with their kept tokens, for a page."""
        return [Picture(example.name, example.png()) for example in self.examples]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def verdict(self) -> str:
        """One line: PASS, or FAIL and the first reason."""
        failed = [check for check in self.checks if not check.passed]
        if failed:
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            return f"FAIL {self.bundle.name}: {failed[0].name}: {failed[0].detail}{more}"
        seen = number_of(self.images, "image")
        if self.gates:
            decisions = decisions_in_words([result.flips for result in self.gates])
            seen += f", decisions of {number_of(len(self.gates), 'gate')} {decisions}"
        given = ""
        if self.bundle.assumed:
            given = f", given these assumptions: {in_words(self.bundle.assumed)}"
        return f"PASS {self.bundle.name}: {seen}, against the {self.reference}{given}"

    def to_dict(self, command: list[str] | None = None) -> dict[str, Any]:
        """JSON-able record; what is infinite or no number is written as null."""
        return {
            "schema_version": SCHEMA_VERSION,
            "tool": {"name": "svit-deploy", "version": __version__},
            "command": command or [],
            "status": {
                "verdict": "pass" if self.passed else "fail",
                "reasons": [f"{c.name}: {c.detail}" for c in self.checks if not c.passed],
            },
            "inputs": [{"name": self.bundle.name, "model_sha256": self.bundle.model_sha256}],
            "environment": describe_environment(),
            "settings": {
                "engine": self.engine,
                "reference": self.reference,
                "limits": asdict(self.limits),
            },
            "results": {
                "images": self.images,
                "assumed": self.bundle.assumed,
                "checks": [asdict(check) for check in self.checks],
                "stages": _stages(self.stages),
                "stages_in_float32": _stages(self.stages_in_float32),
                "gates": [_gate_dict(result) for result in self.gates],
                "examples": [
                    {"name": one.name, "kept_tokens": one.keep_mask.sum(axis=1).tolist()}
                    for one in self.examples
                ],
                **_finite(self.results),
                "notes": self.notes,
            },
        }

    def render(self, console: Console) -> None:
        """Prints gates, stages (worst ones first to be seen), checks and the verdict."""
        for line in self.lines:
            console.print(line, highlight=False, markup=False)
        if self.gates:
            console.print(self._gate_table())
        if self.stages:
            worst = max(self.stages, key=lambda stage: stage.error / stage.limit)
            console.print(
                f"worst stage: {worst.name}, error {worst.error:.2g}, limit {worst.limit:.2g}",
                highlight=False,
            )
        table = Table(box=None, pad_edge=False, show_header=False)
        for check in self.checks:
            state = "ok" if check.passed else "[bold red]FAIL[/]"
            table.add_row(state, check.name, escape(check.detail))
        console.print(table)
        for line in self.summary:
            console.print(line, highlight=False, markup=False)
        for note in self.notes:
            console.print(f"note: {note}", highlight=False, markup=False)
        style = "bold green" if self.passed else "bold red"
        console.print(self.verdict, style=style, highlight=False, markup=False)

    def _gate_table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for heading in ("gate", "block", "agreement", "near ties", "faults", "keep", "target"):
            table.add_column(heading, justify="right")
        for result in self.gates:
            flips = result.flips
            target = "-" if result.target_keep is None else f"{result.target_keep:.3f}"
            table.add_row(
                str(result.gate),
                str(result.block),
                f"{flips.agreement:.4%}",
                str(flips.near_ties),
                str(flips.faults),
                f"{result.keep:.3f}",
                target,
            )
        return table


def _stages(stages: list[Stage]) -> list[dict[str, Any]]:
    return [_finite(asdict(stage)) for stage in stages]


def _gate_dict(result: GateResult) -> dict[str, Any]:
    flips = result.flips
    return {
        "gate": result.gate,
        "block": result.block,
        "agreement": flips.agreement,
        "coin_toss_flips": flips.near_ties,
        "fault_flips": flips.faults,
        "consequent_flips": flips.consequences,
        "largest_flipped_margin": _finite(flips.largest_margin),
        "margin_drift": _finite(result.drift),
        "rounding": result.rounding,
        "keep_ratio": result.keep,
        "reference_keep_ratio": result.expected_keep,
        "target_keep_ratio": result.target_keep,
        "margins": None if result.margins is None else asdict(result.margins),
    }


def _finite(value: Any) -> Any:
    """The value with None for what JSON has no number for, at any depth."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
