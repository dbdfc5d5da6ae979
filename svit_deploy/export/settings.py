"""What to export and how."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from svit_deploy.errors import UsageError
from svit_deploy.export.engine_settings import EngineOptions, EngineSettings
from svit_deploy.loading.settings import LoadSettings
from svit_deploy.model.config import BatchRange, TokenMode, check_ratios, parse_ratios
from svit_deploy.model.precision import FORMATS, METHODS
from svit_deploy.model.profiles import parse_batches
from svit_deploy.options import CLASS_NAMES, MAX_IMAGES, option

if TYPE_CHECKING:
    from svit_deploy.images import ImageSet

__all__ = ["EngineOptions", "ExportSettings"]

DEFAULT_TASK = "classify"
AUTO_BUDGET = "auto"
DEFAULT_METHOD = "percentile"
MIN_OPSET, MAX_OPSET = 20, 23


def parse_token_mode(text: str, flag: str) -> TokenMode:
    """Reads a token mode's name; raises UsageError."""
    try:
        return TokenMode(text)
    except ValueError:
        known = ", ".join(mode.value for mode in TokenMode)
        raise UsageError(f"{flag} {text!r} is unknown", f"use one of {known}") from None


def _tasks() -> Iterable[str]:
    from svit_deploy.tasks import TASKS

    return TASKS


TASK = partial(
    option,
    DEFAULT_TASK,
    "What the graph computes: classify, backbone (of a detector), detect, cascade or video.",
    metavar="TASK",
    choices=_tasks,
)


def _precisions() -> Iterable[str]:
    from svit_deploy.graph.builder import PRECISIONS

    return PRECISIONS


@dataclass(frozen=True, kw_only=True)
class ExportSettings(EngineSettings, LoadSettings):
    """What to export and how.

    Attributes:
        tokens: None for the method's own mode.
        precision: of all but inputs, outputs, gates, LayerNorm and softmax; int8 and fp8 of the
            linear layers in blocks alone.
        batch: one graph serves all ranges; an engine has an optimisation profile for each.
        image_size: as typed, because the model's task says what it may be.
        budget: one value per gate, or a number of values that divides the number of gates.
        target_keep: per gate, as `budget`.
        plugins: nodes of `trt.plugins`, with function bodies beside them.

    Raises:
        UsageError: values that cannot work, or contradict each other.
    """

    task: str = TASK()
    tokens: TokenMode | None = option(
        None,
        "Token mode: dynamic, budget, masked, static, or dense (without gates). By default "
        "the method's own; for SViT dynamic, or budget with TensorRT.",
        metavar="MODE",
        parse=parse_token_mode,
        choices=lambda: [mode.value for mode in TokenMode],
        after=("arch", "overrides"),
    )
    strict: bool = option(
        False, "Refuse to assume any setting that the weights do not tell, published or not."
    )
    precision: str = option(
        "fp32",
        "fp32, fp16, bf16, int8 or fp8; gates stay in fp32.",
        metavar="TYPE",
        choices=_precisions,
    )
    batch: tuple[BatchRange, ...] | None = option(
        None,
        "Range of batch sizes, or one size; 1:1:32 by default, 1 for a detector's engine. "
        "Several ranges give an engine several profiles: 1,2:8:8,9:32:32.",
        metavar="MIN:OPT:MAX",
        parse=lambda text, _: parse_batches(text),
        after=("target",),
    )
    image_size: str | None = option(
        None,
        "Input size, 224 or 224x320 (height x width); by default the checkpoint's. Detectors "
        "also take a range; their default is 64x64:800x1216:1344x1344.",
        metavar="PIXELS",
        after=("min_shapes", "opt_shapes", "max_shapes"),
    )
    budget: str | None = option(
        None,
        "Tokens that each gate may keep, with --tokens budget: counts 150,110,80, ratios "
        "0.75,0.55,0.4, or auto.",
        metavar="TOKENS",
    )
    budget_percentile: float = option(
        100.0,
        "With --budget auto, the percentage of images that must fit the budgets.",
        metavar="PERCENT",
    )
    calibration: Path | ImageSet | None = option(
        None,
        "Images for --budget auto, --precision int8 and fp8, and for the recorded samples.",
        metavar="PATH",
        kind=Path,
    )
    calibration_method: str = option(
        DEFAULT_METHOD,
        "How --precision int8 or fp8 chooses the range of a layer's inputs: minmax, percentile, "
        "or of int8 entropy.",
        metavar="METHOD",
        choices=lambda: METHODS,
    )
    int8_keep: int = option(
        0,
        "Linear layers that stay float32 with --precision int8 or fp8: those that lose most on "
        "the --calibration images.",
        metavar="N",
    )
    calibrate_gates: Path | ImageSet | None = option(
        None, "Images to calibrate the gate thresholds on.", metavar="PATH", kind=Path
    )
    target_keep: tuple[float, ...] = option(
        (),
        "Keep ratios for --calibrate-gates, for example 0.7,0.49,0.343; by default those "
        "that the model was trained for.",
        metavar="RATIOS",
        parse=parse_ratios,
    )
    max_images: int = MAX_IMAGES(1000)
    gate_outputs: bool = option(
        True, "Whether keep_mask, margin and overflow are outputs of the graph."
    )
    class_names: Path | None = CLASS_NAMES()
    opset: int = option(20, "ONNX opset version.", metavar="N")
    plugins: bool = option(False, "Write row moves as nodes that the TensorRT plugins implement.")

    def __post_init__(self) -> None:
        from svit_deploy.graph.builder import PRECISIONS

        engine = self.engine
        if self.profiles and self.batch is not None:
            raise UsageError("--batch and --min-shapes exclude each other", "leave one of them out")
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"--precision {self.precision!r} is unknown", f"use {', '.join(PRECISIONS)}"
            )
        self._check_quantised()
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise UsageError(
                f"--opset {self.opset} is not supported",
                f"use {MIN_OPSET} to {MAX_OPSET}; 20 is the first with a GELU operator",
            )
        implied = self.tokens is None and engine is not None
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
        check_ratios(self.target_keep, "--target-keep")
        if self.target_keep and self.calibrate_gates is None:
            raise UsageError(
                "--target-keep needs images to measure on", "add --calibrate-gates IMAGES"
            )
        if self.tokens is TokenMode.DENSE and self.calibrate_gates is not None:
            raise UsageError(
                "--calibrate-gates has no meaning with --tokens dense",
                "leave it out, or choose another token mode",
            )

    def _check_quantised(self) -> None:
        form = FORMATS.get(self.precision)
        if self.calibration_method not in METHODS:
            raise UsageError(
                f"--calibration-method {self.calibration_method!r} is unknown",
                f"use {', '.join(METHODS)}",
            )
        if form is not None:
            if self.calibration is None:
                raise UsageError(
                    f"--precision {form.name} needs images to see how large the inputs of layers "
                    "are",
                    "add --calibration IMAGES",
                )
            if self.calibration_method not in form.methods:
                raise UsageError(
                    f"--calibration-method {self.calibration_method} is for evenly spaced numbers, "
                    f"which those of {form.name} are not",
                    f"use {' or '.join(form.methods)}",
                )
        elif self.int8_keep or self.calibration_method != DEFAULT_METHOD:
            flag = "--int8-keep" if self.int8_keep else "--calibration-method"
            raise UsageError(
                f"{flag} has no meaning with --precision {self.precision}",
                f"add --precision {' or '.join(FORMATS)}, or leave it out",
            )
        if self.int8_keep < 0:
            raise UsageError(f"--int8-keep {self.int8_keep} is negative", "give 0 or more")

    @property
    def mode(self) -> TokenMode:
        """The token mode, once it is chosen."""
        assert self.tokens is not None
        return self.tokens
