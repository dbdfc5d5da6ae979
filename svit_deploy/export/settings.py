"""What to export and how."""

from __future__ import annotations

from dataclasses import dataclass, field

from svit_deploy.config import BatchRange, TokenMode
from svit_deploy.errors import UsageError
from svit_deploy.images import ImageSet

MIN_OPSET, MAX_OPSET = 20, 23


@dataclass(frozen=True)
class ExportSettings:
    """What to export and how.

    Attributes:
        tokens: token mode.
        batch: batch sizes that the graph must run; one graph serves any size.
        image_size: (height, width) in pixels; the checkpoint's own by default.
        budget: in `budget` mode: counts, ratios, or "auto" (needs calibration images). One
            value per gate, or a number of values that divides the number of gates.
        budget_percentile: with "auto", the share of images that must fit, 0 to 100.
        calibration: images for budgets and gates.
        calibrate_gates: images to choose gate thresholds from.
        target_keep: keep ratio per gate for them; the model's own targets by default.
        gate_outputs: keep `keep_mask`, `margin` and `overflow` among the graph's outputs.
        opset: ONNX operator set version.
    """

    tokens: TokenMode = TokenMode.DYNAMIC
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

    def __post_init__(self) -> None:
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise UsageError(
                f"--opset {self.opset} is not supported",
                f"use {MIN_OPSET} to {MAX_OPSET}; 20 is the first with a GELU operator",
            )
        if self.budget is not None and self.tokens is not TokenMode.BUDGET:
            raise UsageError(
                f"--budget has no meaning with --tokens {self.tokens.value}",
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
