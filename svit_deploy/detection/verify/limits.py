"""How far an exported detection model may be from the reference before it is refused.

docs/detection.md shows the table and the measurements behind it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from svit_deploy.verify.limits import LIMITS, Limits


@dataclass(frozen=True)
class DetectionLimits(Limits):
    """Largest accepted differences for one precision, beside those of a ViT.

    Errors of tokens and features are those of `compare.token_error`; a feature map's tokens are
    its places.

    Attributes:
        stage: an injector, an extractor, the convolutional branch or a feature map by itself.
        features: a feature map of the whole model, where its keep masks are the reference's.
        box: difference of a matched box's coordinate, relative to the longer side of the image.
        score, mask: difference of matched scores, and of matched masks' probabilities.
        mask_iou: smallest IoU of matched masks.
        unmatched: share of the detections that may lack a partner without being near a cut.
        moved: share of them that may differ from their partner beyond these limits: where
            suppression chooses among boxes of nearly one score, rounding may turn its choice.
    """

    stage: float
    features: float
    box: float
    score: float
    mask: float
    mask_iou: float
    unmatched: float
    moved: float


DETECTION_LIMITS = {
    "fp32": DetectionLimits(
        **asdict(LIMITS["fp32"]),
        stage=2e-5,
        features=1e-4,
        box=1e-5,
        score=1e-4,
        mask=1e-3,
        mask_iou=0.98,
        unmatched=0.02,
        moved=0.0,
    ),
    "fp16": DetectionLimits(
        **asdict(LIMITS["fp16"]),
        stage=1e-2,
        features=5e-2,
        box=1e-3,
        score=2e-2,
        mask=1.5e-1,
        mask_iou=0.85,
        unmatched=0.05,
        moved=0.05,
    ),
    "bf16": DetectionLimits(
        **asdict(LIMITS["bf16"]),
        stage=6e-2,
        features=3e-1,
        box=0.0,  # of backbones alone
        score=0.0,
        mask=0.0,
        mask_iou=1.0,
        unmatched=0.0,
        moved=0.0,
    ),
}
