"""What to measure, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from svit_deploy.engines.base import Engine
from svit_deploy.errors import UsageError
from svit_deploy.stats import percentile_floor

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
        is_engine: whether it is a TensorRT engine.
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
    is_engine: bool = False
    notes: Callable[[Engine], Sequence[str]] | None = None


@dataclass(frozen=True)
class BenchSettings:
    """How to measure.

    Args:
        batches: batch sizes.
        warmup_s: untimed running of each engine at each batch size.
        duration_s: timed running of each engine at each batch size, at least.
        min_samples: timed runs of each engine at each batch size, at least.
        threads: of ONNX Runtime.
        provider: of ONNX Runtime; by default a bundle's engine runs, if it has one, else cpu.
        cuda_graph: of engines: `auto`, `on`, `off`, or `both` for two targets side by side.
        allow_foreign: run engines without a sidecar.
        plugin_library: for engines; by default the one that `plugins build` made.
        device: number of the GPU.
        worst_case: time the `worst-case` variants too.
        sweep: time the `keep=...` variants too.
        image_size: (height, width) that detection models run at; their typical one by default.
        seed: of the order of images, the order in a block, and the bootstrap.
        require_stable: count an unstable target as a failure.
        fail_above: limits in milliseconds by mean, p50, p90, p99 or max, for every target but
            the baseline (or for the only target).

    Raises:
        UsageError: a value that cannot work.
    """

    batches: tuple[int, ...] = (1,)
    warmup_s: float = 1.0
    duration_s: float = 5.0
    min_samples: int = percentile_floor(90)
    threads: int = 0
    provider: str | None = None
    cuda_graph: str = "auto"
    allow_foreign: bool = False
    plugin_library: str | None = None
    device: int = 0
    worst_case: bool = True
    sweep: bool = False
    image_size: tuple[int, int] | None = None
    seed: int = 0
    require_stable: bool = False
    fail_above: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1:
            raise UsageError(f"batch sizes {list(self.batches)} make no sense", "give 1 or more")
        if self.warmup_s < 0 or self.duration_s < 0 or self.min_samples < 0:
            raise UsageError("a duration or a number of runs is negative", "give 0 or more")
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
    def wants_variants(self) -> bool:
        return self.worst_case or self.sweep

    def variants(self, target: BenchTarget) -> list[str]:
        """Which of the target's variants to time, the worst case first."""
        names = [WORST_CASE] if self.worst_case and WORST_CASE in target.variants else []
        if self.sweep:
            names += [name for name in target.variants if name.startswith(KEEP)]
        return names
