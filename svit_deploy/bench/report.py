"""The results of a benchmark: plain data, its JSON form and its terminal form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from svit_deploy import __version__
from svit_deploy.bench.settings import Provenance
from svit_deploy.errors import BenchmarkFailed
from svit_deploy.stats import LatencySummary, RatioInterval, percentile_floor

SCHEMA_VERSION = 1
MEASURED = (
    "host to host: from input arrays in host memory to output arrays in host memory; "
    "decoding and preprocessing of images are not included"
)


@dataclass(frozen=True)
class ColdStart:
    """First use in a process that may have loaded the runtime, and the file, before."""

    load_ms: float
    first_inference_ms: float


@dataclass(frozen=True)
class KeptTokens:
    """Tokens kept per image, averaged over the gates, out of `tokens` (S).

    `padding` is what a batch padded to its fullest image computes, over what it keeps: the mean
    over gates of `E[max over the batch] / E[mean over the batch]`; None where nothing was kept.
    """

    tokens: int
    min: float
    p50: float
    mean: float
    max: float
    keep_ratio: float
    per_gate_mean: tuple[float, ...]
    padding: float | None


@dataclass(frozen=True)
class Tercile:
    """Latency of the third of the runs whose batches kept fewest, middling or most tokens."""

    kept_min: float
    kept_max: float
    p50_ms: float
    count: int


@dataclass(frozen=True)
class WorstCase:
    """Every token kept: the number for a deadline."""

    latency: LatencySummary
    speedup: RatioInterval | None


@dataclass(frozen=True)
class SweepPoint:
    """One forced keep ratio: the one asked for, the one measured (where known), the latency."""

    requested: float
    keep_ratio: float
    p50_ms: float


@dataclass(frozen=True)
class Sweep:
    """Latency over the keep ratio, its line `intercept + slope * ratio`, and where that crosses
    the baseline: `break_even_keep` is None where it does not between 0 and 1, or without one."""

    points: tuple[SweepPoint, ...]
    intercept_ms: float
    slope_ms: float
    baseline_p50_ms: float | None
    break_even_keep: float | None


@dataclass(frozen=True, eq=False)
class TargetResult:
    """One target at one batch size.

    `samples_ms` `[blocks, 2]` and `kept_of_block` `[blocks]` are the raw data, left out of the
    JSON form. `repeat_cv` is the spread between runs on the same images, over the mean.
    """

    label: str
    batch: int
    images_timed: int
    latency: LatencySummary
    repeat_cv: float
    throughput_images_per_s: float
    speedup: RatioInterval | None
    kept: KeptTokens | None
    terciles: tuple[Tercile, ...]
    worst_case: WorstCase | None
    sweep: Sweep | None
    unstable: tuple[str, ...]
    notes: tuple[str, ...]
    samples_ms: np.ndarray = field(repr=False, metadata={"json": False})
    kept_of_block: np.ndarray | None = field(repr=False, metadata={"json": False})


@dataclass(frozen=True)
class TargetInfo:
    """What was measured, beside its numbers."""

    label: str
    content_dependent: bool
    images: int
    engine: Mapping[str, Any]
    cold_start: ColdStart
    provenance: Provenance | None = None


@dataclass(frozen=True)
class BenchReport:
    """A benchmark's outcome; `failures` are the limits asked for that were not met."""

    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    targets: tuple[TargetInfo, ...]
    results: tuple[TargetResult, ...]
    peak_rss_mib: float | None
    failures: tuple[str, ...]

    def raise_for_failures(self) -> None:
        """Raises BenchmarkFailed (exit code 7) when a limit was not met; call it after writing
        the report."""
        if self.failures:
            raise BenchmarkFailed(
                "; ".join(self.failures), "see the report, or repeat on an idle machine"
            )

    def to_dict(self, command: Sequence[str] = ()) -> dict[str, Any]:
        """JSON-able form without NaN; units stand in the keys."""
        return {
            "schema_version": SCHEMA_VERSION,
            "tool": {"name": "svit-deploy", "version": __version__},
            "command": list(command),
            "status": {
                "verdict": "failed" if self.failures else "ok",
                "reasons": list(self.failures),
            },
            "inputs": [
                {"label": target.label, **_plain(target.provenance)}
                for target in self.targets
                if target.provenance
            ],
            "measured": MEASURED,
            "environment": _plain(self.environment),
            "settings": _plain(self.settings),
            "targets": [
                {key: value for key, value in _plain(target).items() if key != "provenance"}
                for target in self.targets
            ],
            "results": _plain(self.results),
            "peak_rss_mib": self.peak_rss_mib,
        }


def render(report: BenchReport, console: Console) -> None:
    """Prints the report; fits 80 columns and a console that has ASCII only."""
    for batch in dict.fromkeys(result.batch for result in report.results):
        results = [result for result in report.results if result.batch == batch]
        console.print(_latency_table(batch, results))
        for result in results:
            for line in _lines(result, results[0].label):
                _say(console, line)
        if any(result.latency.p99_ms is None for result in results):
            _say(console, f"p99 n/a: it needs {percentile_floor(99)} runs")
        for result in results:
            if result.sweep:
                console.print(_sweep_table(result.label, result.sweep))
    for target in report.targets:
        cold = target.cold_start
        start = f"{_ms(cold.load_ms)} ms load + {_ms(cold.first_inference_ms)} ms first run"
        _say(console, f"{target.label}: cold start {start}")
    if report.peak_rss_mib is not None:
        _say(console, f"peak memory of the process: {report.peak_rss_mib:.0f} MiB")
    _say(console, f"measured {MEASURED}")
    for failure in report.failures:
        _say(console, f"FAILED: {failure}")


def _latency_table(batch: int, results: list[TargetResult]) -> Table:
    count = min(result.latency.count for result in results)
    table = Table(title=f"batch {batch}, {count} runs each, interleaved", title_justify="left")
    table.add_column("latency, ms", overflow="fold")
    for header in ("p50", "p90", "p99", "worst case", "img/s", "kept tokens"):
        table.add_column(header, justify="right", overflow="fold")
    for result in results:
        latency, kept, rate = result.latency, result.kept, result.throughput_images_per_s
        table.add_row(
            Text(result.label),
            _ms(latency.p50_ms),
            _ms(latency.p90_ms),
            _ms(latency.p99_ms),
            _ms(result.worst_case.latency.p50_ms) if result.worst_case else "-",
            f"{rate:.{1 if rate < 100 else 0}f}",
            f"{kept.mean:.3g} ({kept.min:.3g}-{kept.max:.3g}) of {kept.tokens}" if kept else "-",
        )
    return table


def _lines(result: TargetResult, baseline: str) -> list[str]:
    """What the table has no room for, one sentence a line."""
    lines = []
    if result.speedup:
        lines.append(f"speed-up over {baseline}: {_speedup(result.speedup)}")
    if result.worst_case and result.worst_case.speedup:
        lines.append(f"speed-up in the worst case: {_speedup(result.worst_case.speedup)}")
    if result.terciles:
        groups = ", ".join(
            f"{_ms(third.p50_ms)} ms at {third.kept_min:.3g}-{third.kept_max:.3g} tokens"
            for third in result.terciles
        )
        lines.append(f"p50 by content: {groups}")
    lines += [f"unstable: {reason}" for reason in result.unstable]
    lines += [f"note: {note}" for note in result.notes]
    return [f"{result.label}: {line}" for line in lines]


def _sweep_table(label: str, sweep: Sweep) -> Table:
    table = Table(title=Text(f"{label}: latency by keep ratio"), title_justify="left")
    for header in ("asked for", "kept", "p50, ms", "fit, ms"):
        table.add_column(header, justify="right")
    for point in sweep.points:
        fit_ms = sweep.intercept_ms + sweep.slope_ms * point.keep_ratio
        table.add_row(
            f"{point.requested:.0%}", f"{point.keep_ratio:.0%}", _ms(point.p50_ms), _ms(fit_ms)
        )
    table.caption = f"p50 = {_ms(sweep.intercept_ms)} + {_ms(sweep.slope_ms)} x keep ratio"
    if sweep.break_even_keep is not None:
        table.caption += f"; break-even with the baseline: keep {sweep.break_even_keep:.0%}"
    elif sweep.baseline_p50_ms is not None:
        table.caption += f"; no break-even with the baseline ({_ms(sweep.baseline_p50_ms)} ms)"
    return table


def _speedup(interval: RatioInterval) -> str:
    text = f"{interval.ratio:.2f}x [95 % interval {interval.low:.2f}-{interval.high:.2f}]"
    return f"{text}, {interval.verdict}"


def _ms(value: float | None) -> str:
    if value is None:
        return "n/a"
    decimals = 3 if abs(value) < 1 else 2 if abs(value) < 100 else 0
    return f"{value:.{decimals}f}"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)


def _plain(value: Any) -> Any:
    """Dataclasses, mappings and tuples as JSON has them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {
            item.name: _plain(getattr(value, item.name))
            for item in dataclasses.fields(value)
            if item.metadata.get("json", True)
        }
        return plain | {"verdict": value.verdict} if isinstance(value, RatioInterval) else plain
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
