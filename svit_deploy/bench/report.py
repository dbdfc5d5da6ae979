"""The results of a benchmark: plain data and its JSON form."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from svit_deploy import __version__
from svit_deploy.bench.clocks import GpuState
from svit_deploy.bench.flight import InFlight
from svit_deploy.bench.gpu import GpuTimes
from svit_deploy.bench.settings import Provenance
from svit_deploy.bench.stats import LatencySummary, RatioInterval
from svit_deploy.errors import BenchmarkFailed

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


@dataclass(frozen=True)
class LayerTime:
    """What a run spends on operators of one kind in one block; kinds are `graph.parts.KINDS`."""

    block: str
    kind: str
    ms: float


@dataclass(frozen=True)
class Layers:
    """Where the time of an average run under the runtime's profiler goes.

    Attributes:
        total_ms: what the profiler tells of that run; the sum of `times`.
    """

    runs: int
    total_ms: float
    times: tuple[LayerTime, ...]

    def by_kind(self) -> dict[str, float]:
        """Milliseconds, in the order in which they run."""
        return _added((one.kind, one.ms) for one in self.times)

    def by_block(self) -> dict[str, float]:
        """Milliseconds, in the order in which they run."""
        return _added((one.block, one.ms) for one in self.times)


def _added(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in pairs:
        found[name] = found.get(name, 0.0) + value
    return found


@dataclass(frozen=True, eq=False)
class TargetResult:
    """One target at one batch size.

    `samples_ms` `[blocks, 2]` and `kept_of_block` `[blocks]` are the raw data, in the JSON form
    where it is asked for. `repeat_cv` is the spread between runs on the same images, over the mean.
    `rounds_left` were planned and left out for a time limit.
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
    gpu: GpuTimes | None
    in_flight: InFlight | None
    unstable: tuple[str, ...]
    notes: tuple[str, ...]
    rounds: int
    rounds_left: int
    samples_ms: np.ndarray = field(repr=False, metadata={"raw": True})
    kept_of_block: np.ndarray | None = field(repr=False, metadata={"raw": True})
    layers: Layers | None = None


@dataclass(frozen=True)
class TargetInfo:
    """What was measured, beside its numbers."""

    label: str
    content_dependent: bool
    images: int
    engine: Mapping[str, Any]
    cold_start: ColdStart
    provenance: Provenance | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BenchReport:
    """A benchmark's outcome.

    Attributes:
        failures: the limits asked for that were not met.
        gpu: what the GPU was like while it was timed, where one was used and tells.
        notes: what goes for all targets.
        elapsed_s: seconds from the loading of the engines to the last run.
        planned_s: what the timed phases were expected to take without a limit.
    """

    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    targets: tuple[TargetInfo, ...]
    results: tuple[TargetResult, ...]
    peak_rss_mib: float | None
    failures: tuple[str, ...]
    gpu: GpuState | None = None
    notes: tuple[str, ...] = ()
    elapsed_s: float = 0.0
    planned_s: float = 0.0

    def raise_for_failures(self) -> None:
        """Raises BenchmarkFailed (exit code 7) when a limit was not met; call it after writing
        the report."""
        if self.failures:
            raise BenchmarkFailed(
                "; ".join(self.failures), "see the report, or repeat on an idle machine"
            )

    def results_to_list(self, raw: bool) -> list[dict[str, Any]]:
        """The results as `to_dict` has them."""
        found: list[dict[str, Any]] = _plain(self.results, raw)
        return found

    def to_dict(self, command: Sequence[str] = (), raw: bool = False) -> dict[str, Any]:
        """JSON-able form without NaN; units stand in the keys.

        Args:
            raw: with the latency of every run.
        """
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
            "results": self.results_to_list(raw),
            "peak_rss_mib": self.peak_rss_mib,
            "gpu": _plain(self.gpu),
            "elapsed_s": round(self.elapsed_s, 3),
            "planned_s": round(self.planned_s, 3),
            "notes": list(self.notes),
        }


def _plain(value: Any, raw: bool = False) -> Any:
    """Dataclasses, mappings, tuples and arrays as JSON has them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {
            item.name: _plain(getattr(value, item.name), raw)
            for item in dataclasses.fields(value)
            if raw or not item.metadata.get("raw")
        }
        return plain | {"verdict": value.verdict} if isinstance(value, RatioInterval) else plain
    if isinstance(value, Mapping):
        return {key: _plain(item, raw) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_plain(item, raw) for item in value] if isinstance(value, (tuple, list)) else value
