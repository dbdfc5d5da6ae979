"""What a choice saw, as data and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from svit_deploy import __version__
from svit_deploy.bench.settings import LIMITS
from svit_deploy.engines.settings import EngineChoice
from svit_deploy.errors import BenchmarkFailed, SvitDeployError, VerificationFailed
from svit_deploy.io.hub import spelled
from svit_deploy.loading.settings import LoadSettings
from svit_deploy.machine.environment import describe_environment
from svit_deploy.model.model import Model
from svit_deploy.options import options_of, part_of, words_of
from svit_deploy.tune.candidates import Candidate, Found
from svit_deploy.tune.choice import Limits, Point, choose, named, nearest_miss, pareto_front
from svit_deploy.tune.settings import TuneSettings
from svit_deploy.verify.words import number_of

SCHEMA_VERSION = 1
DECISIONS, AGREEMENT = "decisions", "agreement"
"""What stands for accuracy where nothing tells it: the share of decisions that are the
reference's, and the share of answers that are the base's."""


@dataclass(frozen=True)
class Seen:
    """What became of a candidate before it was measured.

    Attributes:
        verified, evaluated: what was seen, JSON-able, as far as it came.
        failed: why it does not pass, if it does not.
    """

    candidate: Candidate
    verified: Mapping[str, Any] | None = None
    evaluated: Mapping[str, Any] | None = None
    failed: str | None = None

    def label(self, threads: int) -> str:
        """What a benchmark calls it."""
        of = f", {number_of(threads, 'thread')}" if threads else ""
        return f"{self.candidate.name}{of}"

    @property
    def quality(self) -> float:
        """Its first measure; where it has none, the share of its decisions that agree."""
        if self.evaluated is not None:
            return float(next(iter(self.evaluated["measures"].values()))["value"])
        assert self.verified is not None
        return 1 - self.verified["turned"] / max(1, self.verified["decisions"])


@dataclass(frozen=True)
class Measured:
    """A candidate in a benchmark: the point that it is, and its entry in the results."""

    seen: Seen
    point: Point
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """All that was seen, and what is chosen of it.

    Attributes:
        seen: the base first.
        benchmarks: reports of `bench`, one for each batch size.
        agreement: whether accuracy means agreement with the base.
    """

    settings: TuneSettings
    found: Found
    seen: Sequence[Seen]
    benchmarks: Sequence[Mapping[str, Any]]
    agreement: bool

    @property
    def limits(self) -> Limits:
        return Limits(self.settings.max_accuracy_drop, self.settings.latency_budget)

    @cached_property
    def measured(self) -> list[Measured]:
        by_label = {
            seen.label(threads): (seen, threads)
            for seen in self.seen
            if seen.failed is None
            for threads in self.settings.threads
        }
        return [
            Measured(seen, self._point(seen, threads, result), result)
            for benchmark in self.benchmarks
            for result in benchmark["results"]
            for seen, threads in [by_label[result["label"]]]
        ]

    @property
    def points(self) -> list[Point]:
        return [one.point for one in self.measured]

    @cached_property
    def chosen(self) -> Measured | None:
        winner = choose(self.points, self.limits)
        return next((one for one in self.measured if one.point is winner), None)

    @property
    def failure(self) -> SvitDeployError | None:
        """Why nothing is chosen, if nothing is."""
        if self.chosen is not None:
            return None
        if not any(point.eligible for point in self.points):
            failed = next(one for one in self.seen if one.failed is not None)
            return VerificationFailed(
                f"no candidate passes: {failed.candidate.name}: {failed.failed}",
                "run svit-deploy verify of such an export to see more",
            )
        return BenchmarkFailed(
            f"nothing that passes holds the limits: {nearest_miss(self.points, self.limits)}",
            "raise --max-accuracy-drop or --latency-budget: what is done is not done again",
        )

    def _point(self, seen: Seen, threads: int, result: Mapping[str, Any]) -> Point:
        latency = {name: result["latency"][f"{name}_ms"] for name in LIMITS}
        drop = None if seen.evaluated is None else self.seen[0].quality - seen.quality
        asked = seen.candidate in self.found.candidates
        name = seen.candidate.name
        return Point(name, threads, result["batch"], latency, seen.quality, drop, asked)


@dataclass(frozen=True)
class TuneReport:
    """A choice's outcome.

    Attributes:
        content: JSON-able (docs/tune.md).
        chosen: the export that was chosen, by its name; None where nothing holds the limits.
        failure: why not.
    """

    content: dict[str, Any]
    chosen: str | None
    failure: SvitDeployError | None

    @property
    def commands(self) -> list[str]:
        """What does the same again: the export, its verification, a measurement."""
        return list((self.content["winner"] or {}).get("commands", ()))

    def to_dict(self, command: Sequence[str] = ()) -> dict[str, Any]:
        """JSON-able record."""
        tool = {"name": "svit-deploy", "version": __version__}
        head = {"schema_version": SCHEMA_VERSION, "tool": tool, "command": list(command)}
        return head | self.content

    def raise_for_failures(self) -> None:
        """Raises an error (exit code 6 or 7) where nothing was chosen; call it after writing the
        report."""
        if self.failure is not None:
            raise self.failure


def make_report(
    outcome: Outcome, model: Model, source: Path, output: Path, seconds: float
) -> TuneReport:
    """The record of a choice."""
    settings, chosen, front = outcome.settings, outcome.chosen, pareto_front(outcome.points)
    reasons = [outcome.failure.message] if outcome.failure else []
    assert model.checkpoint is not None
    winner = None
    if chosen is not None:
        again = commands(chosen.seen.candidate, chosen.point, source, output, settings)
        winner = {
            "point": named(chosen.point), "bundle": str(output), "commands": list(again),
        }  # fmt: skip
    content = {
        "status": {"verdict": "failed" if reasons else "ok", "reasons": reasons},
        "inputs": [{"name": source.name, "checkpoint_sha256": model.checkpoint.sha256}],
        "environment": describe_environment(),
        "settings": _settings(settings),
        "quality": _quality(outcome.seen[0], outcome.agreement),
        "base": outcome.seen[0].candidate.name,
        "candidates": [_candidate(one, source, output) for one in outcome.seen],
        "points": [
            {
                **_point(one),
                "pareto": one.point in front,
                "refused": outcome.limits.refusal(one.point),
                "chosen": one is chosen,
            }
            for one in outcome.measured
        ],
        "left_out": [{"what": what, "why": why} for what, why in outcome.found.left_out],
        "winner": winner,
        "benchmarks": list(outcome.benchmarks),
        "seconds": round(seconds, 3),
    }
    name = None if chosen is None else chosen.seen.candidate.variant.name
    return TuneReport(content, name, outcome.failure)


def commands(
    candidate: Candidate, point: Point, source: Path, output: Path, settings: TuneSettings
) -> Iterator[str]:
    """What reproduces a point: the export, the verification, and the measurement."""
    run = words_of(EngineChoice, candidate.run_options | {"threads": point.threads})
    load = words_of(LoadSettings, vars(part_of(settings, LoadSettings)))
    images = ["--images", str(settings.images)]
    yield shlex.join(candidate.variant.command(source, output))
    verify = ["svit-deploy", "verify", str(output), "--against", spelled(source), *load, *images]
    yield shlex.join([*verify, *run])
    bench = ["svit-deploy", "bench", str(output), *images, *run]
    yield shlex.join([*bench, "--batch", str(point.batch)])


def _settings(settings: TuneSettings) -> dict[str, Any]:
    budget = settings.latency_budget
    return {
        "images": str(settings.images),
        "max_images": settings.max_images,
        "verify_images": settings.verify_images,
        "max_accuracy_drop": settings.max_accuracy_drop,
        "latency_budget": None if budget is None else {budget.statistic: budget.ms},
        "batches": list(settings.batches),
        "threads": list(settings.threads),
    }


def _quality(base: Seen, agreement: bool) -> dict[str, Any]:
    """What the quality of a point is, who tells it, and the base's."""
    if base.evaluated is None:
        assert base.verified is not None
        measure, told, images = DECISIONS, "the reference", base.verified["images"]
    else:
        measure, told = next(iter(base.evaluated["measures"])), base.evaluated["labels"]
        images = base.evaluated["images"]
    if agreement:
        measure, told = AGREEMENT, f"the answers of {base.candidate.name}"
    return {"measure": measure, "told_by": told, "images": images, "base": base.quality}


def _candidate(one: Seen, source: Path, output: Path) -> dict[str, Any]:
    run, known = one.candidate.run_options, options_of(EngineChoice)
    evaluated = None
    if one.evaluated is not None:
        names = ("measures", "images", "mean_kept_tokens", "tokens", "overflowing_images")
        evaluated = {name: one.evaluated[name] for name in names}
    return {
        "name": one.candidate.name,
        "export": shlex.join(one.candidate.variant.command(source, output)),
        "run": {name: value for name, value in run.items() if value != known[name].default()},
        "verified": one.verified,
        "evaluated": evaluated,
        "failed": one.failed,
    }


def _point(one: Measured) -> dict[str, Any]:
    point, result, verified = one.point, one.result, one.seen.verified
    assert verified is not None
    return {
        "label": result["label"],
        "candidate": point.candidate,
        "threads": point.threads,
        "batch": point.batch,
        **{f"{name}_ms": value for name, value in point.latency.items()},
        "ms_per_image": point.ms_per_image,
        "images_per_s": result["throughput_images_per_s"],
        "speedup": result["speedup"],
        "quality": point.quality,
        "accuracy_drop": point.drop,
        "decisions": verified["decisions"],
        "decisions_turned": verified["turned"],
        "asked_for": point.eligible,
    }
