"""What to measure, and how."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from svit_deploy.bench.durations import TimingSettings
from svit_deploy.engines.settings import RunSettings
from svit_deploy.errors import UsageError
from svit_deploy.model.config import parse_image_size
from svit_deploy.options import IMAGES, MAX_IMAGES, option

if TYPE_CHECKING:
    import numpy as np

    from svit_deploy.engines.base import Engine
    from svit_deploy.engines.runtimes import Runtime
    from svit_deploy.images import ImageSet

WORST_CASE = "worst-case"
KEEP = "keep="
GRAPH_MODES = ("auto", "on", "off", "both")
LIMITS = ("mean", "p50", "p90", "p99", "max")


@dataclass(frozen=True)
class Provenance:
    """What was measured on what: names and hashes for the report.

    `images_sha256` is None for noise; `images` says what the pictures are.
    """

    model: str
    model_sha256: str
    size_bytes: int
    images: str
    images_sha256: str | None


@dataclass(frozen=True, eq=False)
class BenchTarget:
    """A model to measure.

    Args:
        label: its name in the report.
        engine_factory: loads it; timed as the cold start.
        content_dependent: whether its latency depends on the images.
        input_name: the graph's image input.
        inputs: the images, preprocessed, float32 `[n, 3, H, W]`.
        keep_output: the graph's keep mask, bool `[B, G, S]`, if it has one.
        variants: more engines of the same model: `worst-case` keeps all tokens, `keep=0.25`
            forces a keep ratio for the sweep.
        task_outputs: what the timed runs ask for; all outputs but the keep mask by default.
        provenance: for the report.
        runtime: what runs it.
        runs_on: the same in words.
        notes: what the report should say of the loaded engine, a sentence each.
    """

    label: str
    engine_factory: Callable[[], Engine]
    content_dependent: bool
    input_name: str
    inputs: np.ndarray
    keep_output: str | None = None
    variants: Mapping[str, Callable[[], Engine]] = field(default_factory=dict)
    task_outputs: tuple[str, ...] | None = None
    provenance: Provenance | None = None
    runtime: Runtime | None = None
    runs_on: str = ""
    notes: Callable[[Engine], Sequence[str]] | None = None


def parse_whole_numbers(text: str, flag: str) -> tuple[int, ...]:
    """Reads `1,8`.

    Raises:
        UsageError: anything else.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{flag} {text!r} is not a list of whole numbers", f"write, e.g., {flag} 1,8"
        ) from None


def parse_limits(pairs: Sequence[str], flag: str = "--fail-above") -> dict[str, float]:
    """Reads `NAME=MILLISECONDS`, any number of them; `BenchSettings` checks the names.

    Raises:
        UsageError: no finite number.
    """
    limits = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            limits[name] = float(value.removesuffix("ms"))
        except ValueError:
            limits[name] = math.nan
        if not math.isfinite(limits[name]):
            raise UsageError(
                f"{flag} {pair!r} is not NAME=MILLISECONDS", f"write, e.g., {flag} p99=12"
            )
    return limits


@dataclass(frozen=True, kw_only=True)
class BenchSettings(TimingSettings, RunSettings):
    """What to feed, and how to measure.

    Attributes:
        image_size: (height, width).
        fail_above: limits in milliseconds by mean, p50, p90, p99 or max, for every target but
            the baseline (or for the only target).

    Raises:
        UsageError: a value that cannot work.
    """

    images: Path | ImageSet | None = IMAGES(None)
    max_images: int = MAX_IMAGES(1000)
    noise: bool = option(False, "Random noise instead of images.", flag="--random")
    allow_noise: bool = option(
        False, "Accept --random even for a model whose latency depends on the images."
    )
    image_size: tuple[int, int] | None = option(
        None,
        "Input size for detectors, for example 800x1216. By default their typical size.",
        metavar="PIXELS",
        parse=lambda text, _: parse_image_size(text),
    )
    batches: tuple[int, ...] = option(
        (1,),
        "Batch sizes, for example 1,8.",
        flag="--batch",
        metavar="N,N",
        parse=parse_whole_numbers,
        typed="1",
    )
    worst_case: bool = option(True, "Also time the worst case, in which all tokens are kept.")
    sweep_tokens: Path | None = option(
        None,
        "Also time several keep ratios, and plot latency against kept tokens.",
        metavar="PNG",
        kind=Path,
    )
    profile_layers: bool = option(
        False, "Also list where the time goes, by block and by kind of operator."
    )
    cuda_graph: str = option(
        "auto",
        "CUDA graphs of engines and provider cuda: auto, on, off, or both to compare.",
        metavar="MODE",
        after=("engine", "engine_precision", "provider", "device", "threads"),
        choices=lambda: GRAPH_MODES,
    )
    plugin_library: str | None = option(
        None,
        "Plugin library for engines. By default the one that `plugins build` made.",
        metavar="FILE",
        after=("allow_foreign",),
    )
    in_flight: int = option(
        2,
        "Runs in flight when throughput is measured, on TensorRT and provider cuda; 1 leaves it "
        "out, as --max-time does.",
        metavar="N",
        low=1,
        high=16,
    )
    seed: int = option(0, "Seed for the order of images and runs.", metavar="N", low=0)
    require_stable: bool = option(False, "Fail if the timings are unstable.")
    fail_above: Mapping[str, float] = option(
        dict,
        "Fail above a latency limit, p99=12 or p50=8ms; may be repeated.",
        metavar="NAME=MS",
        many=True,
        parse=parse_limits,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.batches or min(self.batches) < 1:
            raise UsageError(f"batch sizes {list(self.batches)} make no sense", "give 1 or more")
        if self.cuda_graph not in GRAPH_MODES:
            raise UsageError(
                f"--cuda-graph {self.cuda_graph!r} is unknown", f"use {', '.join(GRAPH_MODES)}"
            )
        for name, limit in self.fail_above.items():
            if name not in LIMITS or not limit > 0:
                raise UsageError(
                    f"the limit {name}={limit} cannot be checked",
                    f"limit one of {', '.join(LIMITS)} to a positive number of milliseconds",
                )

    @property
    def sweep(self) -> bool:
        """Whether to time the `keep=...` variants, too."""
        return self.sweep_tokens is not None

    @property
    def wants_variants(self) -> bool:
        return self.worst_case or self.sweep

    def variants(self, target: BenchTarget) -> list[str]:
        """Which of the target's variants to time, the worst case first."""
        names = [WORST_CASE] if self.worst_case and WORST_CASE in target.variants else []
        if self.sweep:
            names += [name for name in target.variants if name.startswith(KEEP)]
        return names
