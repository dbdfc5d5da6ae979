"""Detections of all images compared with the reference's, and what of it rounding explains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from svit_deploy.model.config import ModelConfig
from svit_deploy.tasks.detect.detections import Detections
from svit_deploy.tasks.detect.limits import DetectionLimits
from svit_deploy.tasks.detect.matching import Match, match

SWAY = 4
"""How many times what rounding did to the reference's own detections may be seen in a graph's."""
MOST = 0.9
"""The share of them that tells: suppression may choose another box for the rest."""


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


def compare_detections(
    pairs: Sequence[tuple[Detections, Detections]], config: ModelConfig, limits: DetectionLimits
) -> Comparison:
    """Matches each image's detections, as shipped and as expected."""
    found = Comparison()
    matches = [match(mine, theirs) for mine, theirs in pairs]
    boxes, scores, masks, ious = _errors(matches)
    near = (boxes <= limits.box * max(config.task.resize)) & (scores <= limits.score)
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
            cuts = [config.task.min_score]
            if len(of) == config.task.max_detections:
                cuts.append(float(of.scores.min()))
            for i in numbers:
                score = float(of.scores[i])
                distance = min(abs(score - cut) for cut in cuts)
                found.lone.append(Lone(image, side, int(of.labels[i]), score, distance))
    return found


def widened(
    limits: DetectionLimits, pairs: Sequence[tuple[Detections, Detections]], config: ModelConfig
) -> DetectionLimits:
    """Limits with room for a small multiple of what rounding did to the reference's detections.

    Args:
        pairs: those with what the heads read off by rounding, and those as they are.
    """
    errors = _errors([match(mine, theirs) for mine, theirs in pairs])
    boxes, scores, masks, apart = (
        SWAY * float(np.quantile(of, MOST)) if len(of) else 0.0
        for of in (*errors[:3], 1 - errors[3])
    )
    room = replace(
        limits,
        box=max(limits.box, boxes / max(config.task.resize)),
        score=max(limits.score, scores),
        mask=max(limits.mask, masks),
        mask_iou=min(limits.mask_iou, 1 - apart),
    )
    found = compare_detections(pairs, config, room)
    each = SWAY / max(found.detections, 1)
    return replace(
        room,
        unmatched=max(limits.unmatched, each * len(unexplained(found, room))),
        moved=max(limits.moved, each * found.moved),
    )


def _errors(matches: Sequence[Match]) -> list[np.ndarray]:
    """Of all matched detections: of boxes, scores and masks, and the IoUs of masks."""
    names = ("box_errors", "score_errors", "mask_errors", "mask_ious")
    return [
        np.concatenate([np.empty(0), *(getattr(result, name) for result in matches)])
        for name in names
    ]


def _may_move(found: Comparison, limits: DetectionLimits) -> int:
    return math.ceil(limits.moved * found.detections)


def unexplained(found: Comparison, limits: DetectionLimits) -> list[Lone]:
    """Those without a partner whose score is at no cut."""
    return [lone for lone in found.lone if not lone.distance <= limits.score]


def faults(found: Comparison, limits: DetectionLimits, config: ModelConfig) -> list[str]:
    """In words, what is beyond its limit."""
    wrong = [
        f"{what} by {error:.2g} (limit {limit:.2g})"
        for what, error, limit in (
            ("boxes differ", found.box_error, limits.box * max(config.task.resize)),
            ("scores differ", found.score_error, limits.score),
            ("masks differ", found.mask_error, limits.mask),
        )
        if not error <= limit
    ]
    if not found.mask_iou >= limits.mask_iou:
        wrong.append(f"masks overlap by {found.mask_iou:.3f} (limit {limits.mask_iou:.3f})")
    lone = len(unexplained(found, limits))
    if lone > limits.unmatched * max(found.detections, 1):
        verbs = ("has", "is") if lone == 1 else ("have", "are")
        wrong.append(f"{lone} {verbs[0]} no partner and {verbs[1]} not near a cut")
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
        near = len(found.lone) - elsewhere
        words += f"; without a partner: {near} near a cut, {elsewhere} elsewhere"
    return words


def describe(found: Comparison) -> list[str]:
    """Lines for the terminal: a summary, and the strongest detections without a partner."""
    lines = [
        f"detections: {found.matched} of {found.detections} matched; boxes within "
        f"{found.box_error:.2g} px, scores {found.score_error:.2g}, masks "
        f"{found.mask_error:.2g}, mask IoU at least {found.mask_iou:.4f}"
    ]
    return lines + [
        f"  {lone.side} in image {lone.image}: class {lone.label}, score "
        f"{lone.score:.4f}, {lone.distance:.2g} from its cut"
        for lone in sorted(found.lone, key=lambda lone: -lone.score)[:20]
    ]
