"""The numbers of tasks that take pictures of many sizes: `ModelConfig.task`."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class FeatureNumbers:
    """Of a backbone.

    Attributes:
        resize: short and long side, in pixels, that pictures are scaled to fit.
    """

    resize: tuple[int, int] = (800, 1333)


@dataclass(frozen=True)
class DetectorNumbers(FeatureNumbers):
    """Of a Mask R-CNN; the defaults are mmdet's for COCO.

    Attributes:
        fpn_dim, fc_dim: channels of the feature pyramid and of the box head.
        class_names: of the labels, if the checkpoint tells them.
        rpn_candidates: proposals per pyramid level before suppression.
        rpn_proposals: proposals per image after it.
        rpn_iou, box_iou: IoU above which the weaker of two boxes is suppressed.
        min_score: detections must be above it.
        max_detections: per image.
    """

    fpn_dim: int = 0
    fc_dim: int = 0
    class_names: tuple[str, ...] = ()
    rpn_candidates: int = 1000
    rpn_proposals: int = 1000
    rpn_iou: float = 0.7
    box_iou: float = 0.5
    min_score: float = 0.05
    max_detections: int = 100


HEADS_ALONE = tuple(
    field.name
    for field in fields(DetectorNumbers)
    if field.name not in {own.name for own in fields(FeatureNumbers)}
)
"""Numbers that a backbone alone does without; bundles of 0.1 name them all the same."""
