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
from svit_deploy.compare import GateFlips
from svit_deploy.environment import describe_environment
from svit_deploy.verify.limits import LIMITS, Limits

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Check:
    """One thing that must hold: its name, whether it does, and what was seen."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Stage:
    """Largest error of one stage of the model, its inputs being the reference's."""

    name: str
    error: float
    limit: float


@dataclass(frozen=True)
class GateResult:
    """One gate of the model as shipped.

    Attributes:
        drift: largest difference of its margins where all decisions before it agree.
        rounding: how far rounding may move a margin: nearer to its cut, it may turn.
        keep, expected_keep: mean keep ratio of the graph and of the reference.
    """

    gate: int
    block: int
    flips: GateFlips
    drift: float
    rounding: float
    keep: float
    expected_keep: float
    target_keep: float | None


@dataclass
class VerifyReport:
    """The outcome of a verification; `passed` is the verdict."""

    bundle: Bundle
    images: int
    reference: str
    engine: dict[str, Any] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    gates: list[GateResult] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    logits_error: float | None = None
    accuracy: float | None = None
    reference_accuracy: float | None = None

    @property
    def limits(self) -> Limits:
        """What the differences were held against."""
        return LIMITS[self.bundle.manifest["precision"]]

    def check(self, name: str, passed: bool, detail: str) -> None:
        self.checks.append(Check(name, bool(passed), detail))

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
        decisions = decisions_in_words([result.flips for result in self.gates])
        gates = f", decisions of {len(self.gates)} gates {decisions}" if self.gates else ""
        return f"PASS {self.bundle.name}: {self.images} images{gates}, against the {self.reference}"

    def to_dict(self, command: list[str] | None = None) -> dict[str, Any]:
        """JSON-able record; an infinite error is written as null."""
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
                "checks": [asdict(check) for check in self.checks],
                "stages": [
                    {"name": s.name, "error": _finite(s.error), "limit": s.limit}
                    for s in self.stages
                ],
                "gates": [self._gate_dict(result) for result in self.gates],
                "logits_error": None if self.logits_error is None else _finite(self.logits_error),
                "top1_accuracy": self.accuracy,
                "reference_top1_accuracy": self.reference_accuracy,
                "notes": self.notes,
            },
        }

    @staticmethod
    def _gate_dict(result: GateResult) -> dict[str, Any]:
        flips = result.flips
        return {
            "gate": result.gate,
            "block": result.block,
            "agreement": flips.agreement,
            "coin_toss_flips": flips.coin_tosses,
            "fault_flips": flips.faults,
            "consequent_flips": flips.consequences,
            "largest_flipped_margin": _finite(flips.largest_margin),
            "margin_drift": _finite(result.drift),
            "rounding": result.rounding,
            "keep_ratio": result.keep,
            "reference_keep_ratio": result.expected_keep,
            "target_keep_ratio": result.target_keep,
        }

    def render(self, console: Console) -> None:
        """Prints gates, stages (worst ones first to be seen), checks and the verdict."""
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
        if self.accuracy is not None and self.reference_accuracy is not None:
            console.print(
                f"top-1 accuracy {self.accuracy:.2%}, reference {self.reference_accuracy:.2%}",
                highlight=False,
            )
        for note in self.notes:
            console.print(f"note: {note}", highlight=False, markup=False)
        style = "bold green" if self.passed else "bold red"
        console.print(self.verdict, style=style, highlight=False, markup=False)

    def _gate_table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for heading in ("gate", "block", "agreement", "coin tosses", "faults", "keep", "target"):
            table.add_column(heading, justify="right")
        for result in self.gates:
            flips = result.flips
            target = "-" if result.target_keep is None else f"{result.target_keep:.3f}"
            table.add_row(
                str(result.gate),
                str(result.block),
                f"{flips.agreement:.4%}",
                str(flips.coin_tosses),
                str(flips.faults),
                f"{result.keep:.3f}",
                target,
            )
        return table


def decisions_in_words(flips: list[GateFlips]) -> str:
    """How far decisions agree whose differences rounding explains."""
    tosses = sum(flip.coin_tosses for flip in flips)
    later = sum(flip.consequences for flip in flips)
    if not tosses:
        return "identical"
    plural = "" if tosses == 1 else "es"
    return f"identical but for {tosses} coin toss{plural}" + (
        f" and {later} decisions after {'it' if tosses == 1 else 'them'}" if later else ""
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
