"""How far a detector's results may be from the reference's; docs/detection.md has the evidence."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from svit_deploy.tasks.features import FEATURE_LIMITS, FeatureLimits


@dataclass(frozen=True)
class DetectionLimits(FeatureLimits):
    """Largest accepted differences for one precision, beside those of a backbone.

    Attributes:
        box: difference of a matched box's coordinate, relative to the longer side of the image.
        score, mask: difference of matched scores, and of matched masks' probabilities.
        mask_iou: smallest IoU of matched masks.
        unmatched: share of the detections that may lack a partner without being near a cut.
        moved: share of them that may differ from their partner beyond these limits: where
            suppression chooses among boxes of nearly one score, rounding may flip its choice.
    """

    box: float
    score: float
    mask: float
    mask_iou: float
    unmatched: float
    moved: float


DETECTION_LIMITS = {
    "fp32": DetectionLimits(
        **asdict(FEATURE_LIMITS["fp32"]),
        box=1e-5,
        score=1e-4,
        mask=1e-3,
        mask_iou=0.98,
        unmatched=0.02,
        moved=0.0,
    ),
    "fp16": DetectionLimits(
        **asdict(FEATURE_LIMITS["fp16"]),
        box=1e-3,
        score=2e-2,
        mask=1.5e-1,
        mask_iou=0.85,
        unmatched=0.05,
        moved=0.05,
    ),
}
