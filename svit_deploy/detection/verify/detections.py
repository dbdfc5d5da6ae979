"""Detections of all images compared with the reference's, and what of it rounding explains."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from svit_deploy.detection.config import AdapterConfig
from svit_deploy.detection.matching import match
from svit_deploy.detection.postprocess import Detections
from svit_deploy.detection.verify.limits import DetectionLimits
from svit_deploy.detection.verify.report import Comparison, Lone


def compare_detections(
    pairs: Sequence[tuple[Detections, Detections]], config: AdapterConfig, limits: DetectionLimits
) -> Comparison:
    """Matches each image's detections, as shipped and as expected."""
    found = Comparison()
    matches = [match(mine, theirs) for mine, theirs in pairs]
    boxes, scores, masks, ious = (
        np.concatenate([np.empty(0), *(getattr(result, name) for result in matches)])
        for name in ("box_errors", "score_errors", "mask_errors", "mask_ious")
    )
    near = (boxes <= limits.box * max(config.resize)) & (scores <= limits.score)
    near &= (masks <= limits.mask) & (ious >= limits.mask_iou)
    found.detections = sum(len(theirs) for _, theirs in pairs)
    found.matched, found.moved = len(near), int((~near).sum())
    shown = near if found.moved <= _may_move(found, limits) else np.ones_like(near)
    found.box_error, found.score_error, found.mask_error = (
        float(errors[shown].max(initial=0.0)) for errors in (boxes, scores, masks)
    )
    found.mask_iou = float(ious[shown].min(initial=1.0))
    for image, (result, (mine, theirs)) in enumerate(zip(matches, pairs, strict=True)):
        for side, of, numbers in (
            ("extra", mine, result.extra),
            ("missing", theirs, result.missing),
        ):
            cuts = [config.min_score]
            if len(of) == config.max_detections:
                cuts.append(float(of.scores.min()))
            for i in numbers:
                score = float(of.scores[i])
                distance = min(abs(score - cut) for cut in cuts)
                found.lone.append(Lone(image, side, int(of.labels[i]), score, distance))
    return found


def _may_move(found: Comparison, limits: DetectionLimits) -> int:
    return math.ceil(limits.moved * found.detections)


def unexplained(found: Comparison, limits: DetectionLimits) -> list[Lone]:
    """Those without a partner whose score is at no cut."""
    return [lone for lone in found.lone if not lone.distance <= limits.score]


def faults(found: Comparison, limits: DetectionLimits, config: AdapterConfig) -> list[str]:
    """In words, what is beyond its limit."""
    wrong = [
        f"{what} by {error:.2g} (limit {limit:.2g})"
        for what, error, limit in (
            ("boxes differ", found.box_error, limits.box * max(config.resize)),
            ("scores differ", found.score_error, limits.score),
            ("masks differ", found.mask_error, limits.mask),
        )
        if not error <= limit
    ]
    if not found.mask_iou >= limits.mask_iou:
        wrong.append(f"masks overlap by {found.mask_iou:.3f} (limit {limits.mask_iou:.3f})")
    lone = len(unexplained(found, limits))
    if lone > limits.unmatched * max(found.detections, 1):
        wrong.append(f"{lone} have no partner and are not near a cut")
    return wrong


def in_words(found: Comparison, limits: DetectionLimits) -> str:
    words = (
        f"{found.matched} of {found.detections} matched, boxes within {found.box_error:.2g} px, "
        f"scores {found.score_error:.2g}, masks {found.mask_error:.2g}"
    )
    if found.moved:
        words += f"; {found.moved} further apart, suppression having chosen others"
    if found.lone:
        elsewhere = len(unexplained(found, limits))
        tosses = len(found.lone) - elsewhere
        words += f"; without a partner: {tosses} near a cut, {elsewhere} elsewhere"
    return words
