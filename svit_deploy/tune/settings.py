"""What to try, and what the result must hold."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import MISSING, dataclass
from pathlib import Path

from svit_deploy.bench.durations import TimingSettings, parse_seconds
from svit_deploy.bench.settings import LIMITS, parse_whole_numbers
from svit_deploy.engines.settings import ENGINES
from svit_deploy.errors import UsageError
from svit_deploy.export.settings import TASK
from svit_deploy.loading.settings import LoadSettings
from svit_deploy.model.config import TokenMode
from svit_deploy.options import ANNOTATIONS, CLASS_NAMES, IMAGES, LABELS, MAX_IMAGES, option

USUAL = "p50"


@dataclass(frozen=True)
class LatencyBudget:
    """The longest that a run may take.

    Attributes:
        statistic: which of its latencies: mean, p50, p90, p99 or max.
    """

    ms: float
    statistic: str = USUAL

    def __str__(self) -> str:
        return f"{self.statistic} {self.ms:g} ms"


def parse_names(text: str, flag: str) -> tuple[str, ...]:
    """Reads `dense,dynamic`; raises UsageError where there is nothing."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise UsageError(f"{flag} names nothing", "leave it out to try all")
    return found


def parse_share(text: str, flag: str) -> float:
    """Reads `0.5%`, or 0.005; raises UsageError for what is not from 0 to 100 %."""
    number, percent, rest = text.strip().partition("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = math.nan
    if rest or not 0 <= share <= 1:
        raise UsageError(f"{flag} {text!r} is no share", f"write, e.g., {flag} 0.5%")
    return share


def parse_percentages(text: str, flag: str) -> tuple[float, ...]:
    """Reads `100,95`; raises UsageError for what is not in (0, 100]."""
    try:
        found = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(0 < one <= 100 for one in found):
        raise UsageError(f"{flag} {text!r} are no percentages", f"write, e.g., {flag} 100,95")
    return found


def parse_latency(text: str, flag: str) -> LatencyBudget:
    """Reads `20ms`, `0.1s` or `p90=20ms`.

    Raises:
        UsageError: anything else; a number without a unit could be either.
    """
    name, equals, value = text.strip().rpartition("=")
    statistic = name if equals else USUAL
    if statistic not in LIMITS or not value.endswith("s"):
        raise UsageError(
            f"{flag} {text!r} is no latency",
            f"write, e.g., {flag} 20ms, or one of {', '.join(LIMITS)} before it: p90=20ms",
        )
    ms = parse_seconds(value, flag) * 1e3
    if not ms > 0:
        raise UsageError(f"{flag} {text!r} leaves no time", f"write, e.g., {flag} 20ms")
    return LatencyBudget(ms, statistic)


def _precisions() -> Iterable[str]:
    from svit_deploy.graph.builder import PRECISIONS

    return PRECISIONS


@dataclass(frozen=True, kw_only=True)
class TuneSettings(TimingSettings, LoadSettings):
    """What to try, on which images, and what the result must hold.

    Attributes:
        modes, precisions, engines: names; None for all that make sense.
        max_accuracy_drop: below what the checkpoint reaches, as a share: 0.005 is half a percent.
        latency_budget: without it the fastest that holds the rest is chosen, with it the most
            accurate.

    Raises:
        UsageError: values that cannot work.
    """

    images: Path = IMAGES(MISSING)
    labels: Path | None = LABELS()
    annotations: Path | None = ANNOTATIONS()
    class_names: Path | None = CLASS_NAMES()
    calibration: Path | None = option(
        None,
        "Images that budgets and ranges of int8 and fp8 are chosen on; by default --images.",
        metavar="PATH",
        kind=Path,
    )
    max_images: int = MAX_IMAGES(1000)
    verify_images: int = option(
        32, "Images on which each candidate is verified.", metavar="N", low=1
    )
    task: str = TASK()
    max_accuracy_drop: float = option(
        0.005,
        "Largest loss of accuracy against the checkpoint, in points: 0.5%.",
        metavar="SHARE",
        parse=parse_share,
        typed="0.5%",
    )
    latency_budget: LatencyBudget | None = option(
        None,
        "Longest p50 of a run: 20ms; or another figure, p90=20ms. Chooses the most accurate then.",
        metavar="TIME",
        parse=parse_latency,
    )
    modes: tuple[str, ...] | None = option(
        None,
        "Token modes to try, for example dense,dynamic; by default all that the method has.",
        metavar="NAMES",
        parse=parse_names,
        choices=lambda: [mode.value for mode in TokenMode],
    )
    precisions: tuple[str, ...] | None = option(
        None,
        "Precisions of graphs to try, for example fp32; by default all.",
        metavar="NAMES",
        parse=parse_names,
        choices=_precisions,
    )
    engines: tuple[str, ...] | None = option(
        None,
        "Engines to try, for example onnxruntime,openvino; by default all that run here.",
        metavar="NAMES",
        parse=parse_names,
        choices=lambda: ENGINES,
    )
    budget_percentiles: tuple[float, ...] = option(
        (100.0, 95.0),
        "Percentages of images that must fit the budgets, a candidate each.",
        metavar="N,N",
        parse=parse_percentages,
        typed="100,95",
    )
    batches: tuple[int, ...] = option(
        (1,),
        "Batch sizes to try, for example 1,8.",
        flag="--batch",
        metavar="N,N",
        parse=parse_whole_numbers,
        typed="1",
    )
    threads: tuple[int, ...] = option(
        (0,),
        "Numbers of CPU threads to try, for example 1,4; 0 means one per core.",
        metavar="N,N",
        parse=parse_whole_numbers,
        typed="0",
    )
    keep: bool = option(False, "Keep the candidates' folder, OUTPUT.tune, when all is done.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images == Path("-"):
            raise UsageError(
                "the images are read more than once, and standard input is not",
                "write the list to a .txt file",
            )
        for flag, numbers, least in (("--batch", self.batches, 1), ("--threads", self.threads, 0)):
            if not numbers or min(numbers) < least:
                raise UsageError(f"{flag} {list(numbers)} makes no sense", f"give {least} or more")
