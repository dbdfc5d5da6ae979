"""What the verification of a detection model saw."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console

from svit_deploy.detection.verify.limits import DETECTION_LIMITS, DetectionLimits
from svit_deploy.verify.report import VerifyReport


@dataclass(frozen=True)
class Lone:
    """A detection that only one side has.

    Attributes:
        side: `extra` (only the exported model has it) or `missing`.
        distance: of its score from the nearest cut: the score threshold, or the weakest
            detection of an image that has as many as it may.
    """

    image: int
    side: str
    label: int
    score: float
    distance: float


@dataclass
class Comparison:
    """Detections of all images compared.

    Attributes:
        detections: of the reference.
        moved: of the matched, how many differ beyond a limit.
        box_error, score_error, mask_error, mask_iou: the largest, and the smallest IoU, of the
            others, or of all if more moved than may; boxes in pixels of the original pictures.
    """

    detections: int = 0
    matched: int = 0
    moved: int = 0
    box_error: float = 0.0
    score_error: float = 0.0
    mask_error: float = 0.0
    mask_iou: float = 1.0
    lone: list[Lone] = field(default_factory=list)


@dataclass
class DetectionReport(VerifyReport):
    """The outcome of a verification; see `VerifyReport`."""

    features: dict[str, float] = field(default_factory=dict)
    comparison: Comparison | None = None
    average_precision: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def limits(self) -> DetectionLimits:
        return DETECTION_LIMITS[self.bundle.manifest["precision"]]

    def to_dict(self, command: list[str] | None = None) -> dict[str, Any]:
        content = super().to_dict(command)
        results = content["results"]
        for name in ("logits_error", "top1_accuracy", "reference_top1_accuracy"):
            del results[name]
        results["features"] = self.features
        results["detections"] = None if self.comparison is None else asdict(self.comparison)
        results["average_precision"] = self.average_precision
        return content

    def render(self, console: Console) -> None:
        for name, error in self.features.items():
            console.print(f"{name}: largest error {error:.2g}", highlight=False)
        if self.comparison is not None:
            found = self.comparison
            console.print(
                f"detections: {found.matched} of {found.detections} matched; boxes within "
                f"{found.box_error:.2g} px, scores {found.score_error:.2g}, masks "
                f"{found.mask_error:.2g}, mask IoU at least {found.mask_iou:.4f}",
                highlight=False,
            )
            for lone in sorted(found.lone, key=lambda lone: -lone.score)[:20]:
                console.print(
                    f"  {lone.side} in image {lone.image}: class {lone.label}, score "
                    f"{lone.score:.4f}, {lone.distance:.2g} from its cut",
                    highlight=False,
                )
        for kind, scores in self.average_precision.items():
            parts = ", ".join(f"{side} {value:.4f}" for side, value in scores.items())
            console.print(f"{kind} AP: {parts}", highlight=False)
        super().render(console)
