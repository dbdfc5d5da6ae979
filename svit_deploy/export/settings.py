"""What to export and how."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from svit_deploy.config import BatchRange, TokenMode
from svit_deploy.engines.tensorrt.library import TARGETS
from svit_deploy.errors import UsageError
from svit_deploy.export.builder import PRECISIONS
from svit_deploy.images import ImageSet
from svit_deploy.profiles import Profile

MIN_OPSET, MAX_OPSET = 20, 23
_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class EngineOptions:
    """How to build an engine.

    Attributes:
        target: `tensorrt` or `tensorrt-rtx`.
        optimization_level: of the builder, 0 to 5; its default if None.
        workspace_bytes: most scratch memory a layer may use; TensorRT's default if 0.
        timing_cache: file; None for one in the user's cache folder, "none" for no cache.
        plugin_library: for a graph with plugin nodes; None for the one that `svit-deploy plugins
            build` made, "none" to build from the nodes' function bodies.
    """

    target: str
    optimization_level: int | None = None
    workspace_bytes: int = 0
    timing_cache: str | None = None
    plugin_library: str | None = None

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise UsageError(
                f"--target {self.target!r} is unknown", f"use onnx, {', '.join(TARGETS)}"
            )
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(
                f"--opt-level {self.optimization_level} is out of range", "give 0 to 5"
            )


@dataclass(frozen=True)
class ExportSettings:
    """What to export and how.

    Attributes:
        tokens: token mode; None for the method's own.
        batch: batch sizes that the graph must run; one graph serves any size.
        profiles: input shapes that an engine must serve, an optimisation profile each.
        buckets: instead of them, batch sizes at the model's image size; by default `batch`.
        image_size: (height, width) in pixels; the checkpoint's own by default.
        budget: in `budget` mode: counts, ratios, or "auto" (needs calibration images). One
            value per gate, or a number of values that divides the number of gates.
        budget_percentile: with "auto", the share of images that must fit, 0 to 100.
        calibration: images for budgets and gates.
        calibrate_gates: images to choose gate thresholds from.
        target_keep: keep ratio per gate for them; the model's own targets by default.
        gate_outputs: keep `keep_mask`, `margin` and `overflow` among the graph's outputs.
        opset: ONNX operator set version.
        precision: fp32, fp16 or bf16, of all but inputs, outputs, gates, LayerNorm and softmax.
        plugins: write row moves as nodes of `trt.plugins`, with function bodies beside them.
        engine: build a TensorRT engine, too.
    """

    tokens: TokenMode | None = TokenMode.DYNAMIC
    batch: BatchRange = field(default_factory=lambda: BatchRange(1, 1, 32))
    image_size: tuple[int, int] | None = None
    budget: str | None = None
    budget_percentile: float = 100.0
    calibration: ImageSet | None = None
    calibrate_gates: ImageSet | None = None
    target_keep: tuple[float, ...] = ()
    gate_outputs: bool = True
    opset: int = 20
    precision: str = "fp32"
    plugins: bool = False
    profiles: tuple[Profile, ...] = ()
    buckets: tuple[BatchRange, ...] = ()
    engine: EngineOptions | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"--precision {self.precision!r} is unknown", f"use {', '.join(PRECISIONS)}"
            )
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise UsageError(
                f"--opset {self.opset} is not supported",
                f"use {MIN_OPSET} to {MAX_OPSET}; 20 is the first with a GELU operator",
            )
        implied = self.tokens is None and self.engine is not None
        if self.budget is not None and self.tokens is not TokenMode.BUDGET and not implied:
            tokens = f"with --tokens {self.tokens.value}" if self.tokens else "without a token mode"
            raise UsageError(
                f"--budget has no meaning {tokens}",
                "add --tokens budget, or leave --budget out",
            )
        if not 0 < self.budget_percentile <= 100:
            raise UsageError(
                f"--budget-percentile {self.budget_percentile:g} is outside (0, 100]",
                "give, for example, 99",
            )
        if self.target_keep and self.calibrate_gates is None:
            raise UsageError(
                "--target-keep needs images to measure on", "add --calibrate-gates IMAGES"
            )

    @property
    def mode(self) -> TokenMode:
        """The token mode, once it is chosen."""
        assert self.tokens is not None
        return self.tokens


def parse_bytes(text: str, option: str) -> int:
    """Reads `4GiB`, `512MiB` or a number of bytes.

    Raises:
        UsageError: anything else.
    """
    found = re.fullmatch(r"([0-9]{1,15})\s*(KiB|MiB|GiB|)", text.strip())
    if not found:
        raise UsageError(f"{option} {text!r} is no size", f"write, e.g., {option} 4GiB")
    return int(found[1]) * _UNITS[found[2]]


def engine_options(
    target: str,
    optimization_level: int | None,
    workspace: str | None,
    timing_cache: str | None,
    plugin_library: str | None,
) -> EngineOptions | None:
    """What to build, from the command line's values; None for an ONNX file alone.

    Raises:
        UsageError: an option of an engine without one, or a value that cannot work.
    """
    if target != "onnx":
        size = parse_bytes(workspace or "0", "--workspace")
        return EngineOptions(target, optimization_level, size, timing_cache, plugin_library)
    options = {
        "--opt-level": optimization_level,
        "--workspace": workspace,
        "--timing-cache": timing_cache,
        "--plugin-library": plugin_library,
    }
    if given := [name for name, value in options.items() if value is not None]:
        raise UsageError(
            f"{given[0]} has no meaning without an engine",
            f"add --target {' or '.join(TARGETS)}, or leave it out",
        )
    return None
