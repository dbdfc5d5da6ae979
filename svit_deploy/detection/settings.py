"""What to export of a detection model, and how."""

from __future__ import annotations

from dataclasses import dataclass

from svit_deploy.config import check_ratios, spread_over_gates
from svit_deploy.detection.config import DEFAULT_SIZES, AdapterConfig, SizeRange, Task
from svit_deploy.errors import UsageError
from svit_deploy.export.settings import ExportSettings


@dataclass(frozen=True)
class DetectionSettings(ExportSettings):
    """As `ExportSettings`, but for the sizes: `image_size` is not used.

    Attributes:
        task: the backbone alone, or the whole detector.
        sizes: image sizes that the graph must run.
        budget: in `budget` mode: shares of an image's tokens, or "auto"; counts would mean
            something else for each image size.
    """

    task: Task = Task.DETECT
    sizes: SizeRange = DEFAULT_SIZES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task is Task.DETECT and self.precision == "bf16":
            raise UsageError(
                "a whole detector in bfloat16 would move its boxes by pixels",
                "use --precision fp16, or --task backbone",
            )


def budget_shares(text: str | None, config: AdapterConfig) -> tuple[float, ...]:
    """The share of its tokens that each gate may keep, from `--budget`.

    Raises:
        UsageError: missing, or no ratios above 0 and at most 1.
    """
    fix = "add --budget 0.75,0.55,0.4 (ratios) or --budget auto --calibration IMAGES"
    if text is None:
        raise UsageError(
            "--tokens budget needs to know which share of its tokens each gate may keep", fix
        )
    parts = text.split(",")
    try:
        shares = tuple(float(part) for part in parts)
    except ValueError:
        raise UsageError(f"--budget {text!r} is no list of ratios", fix) from None
    if not all("." in part for part in parts):
        raise UsageError(
            f"--budget {text} counts tokens, and a detector's images differ in theirs", fix
        )
    check_ratios(shares, "--budget")
    return spread_over_gates(shares, config.num_gates, "--budget")
