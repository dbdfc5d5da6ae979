"""How long to measure."""

from __future__ import annotations

from dataclasses import dataclass

from svit_deploy.errors import UsageError
from svit_deploy.options import option


@dataclass(frozen=True)
class Timing:
    """How long to warm up and to measure, per engine and batch size."""

    warmup_s: float = 1.0
    duration_s: float = 5.0
    min_samples: int = 64


QUICK = Timing(warmup_s=0.2, duration_s=0.0, min_samples=12)
"""The fewest rounds that give an interval."""
QUICK_NOTE = "a quick run of a few rounds, for a first idea: not a figure to publish"


def parse_seconds(text: str, flag: str) -> float:
    """Reads `5`, `5s` or `500ms`.

    Raises:
        UsageError: anything else, or below 0.
    """
    number, scale = text.strip(), 1.0
    if number.endswith("ms"):
        number, scale = number.removesuffix("ms"), 1e-3
    elif number.endswith("s"):
        number = number.removesuffix("s")
    try:
        seconds = float(number) * scale
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise UsageError(f"{flag} {text!r} is no duration", f"write, e.g., {flag} 5s or 500ms")
    return seconds


@dataclass(frozen=True, kw_only=True)
class TimingSettings:
    """How long to measure.

    Attributes:
        min_samples: by default the fewest for a claim about p90, `percentile_floor(90)`.
        max_time_s: of everything from the loading of the engines on. Whole rounds are left out.

    Raises:
        UsageError: a value that cannot work.
    """

    warmup_s: float = option(
        Timing.warmup_s,
        "Warm-up time per engine and batch size, for example 1s or 500ms.",
        flag="--warmup",
        metavar="TIME",
        parse=parse_seconds,
        typed="1s",
    )
    duration_s: float = option(
        Timing.duration_s,
        "Minimum measuring time per engine and batch size.",
        flag="--duration",
        metavar="TIME",
        parse=parse_seconds,
        typed="5s",
    )
    min_samples: int = option(
        Timing.min_samples,
        "Minimum number of timed runs per engine and batch size.",
        metavar="N",
        low=1,
    )
    max_time_s: float | None = option(
        None,
        "Stop measuring after this time, at a whole round; the report says what was left.",
        flag="--max-time",
        metavar="TIME",
        parse=parse_seconds,
    )
    quick: bool = option(False, "A few rounds only, for a first idea: not a figure to publish.")

    def __post_init__(self) -> None:
        if self.warmup_s < 0 or self.duration_s < 0 or self.min_samples < 0:
            raise UsageError("a duration or a number of runs is negative", "give 0 or more")
        if self.max_time_s is not None and not self.max_time_s > 0:
            raise UsageError("--max-time leaves no time", "give, for example, --max-time 60s")
        if self.quick and self._own_timing != Timing():
            raise UsageError(
                "--quick says how long to measure",
                "leave it out, or --warmup, --duration and --min-samples",
            )

    @property
    def timing(self) -> Timing:
        """How long to measure."""
        return QUICK if self.quick else self._own_timing

    @property
    def _own_timing(self) -> Timing:
        return Timing(self.warmup_s, self.duration_s, self.min_samples)
