"""Detections of one image compared with others of it, whatever their order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from svit_deploy.tasks.detect.detections import Detections

SAME_OBJECT = 0.5
"""IoU above which two boxes of one class are the same detection."""


@dataclass(frozen=True)
class Match:
    """How two sets of detections differ.

    Attributes:
        pairs: `[P, 2]`, numbers of matched detections, `actual` then `expected`.
        extra, missing: numbers of the detections only one has: only `actual`, only `expected`.
        box_errors: `[P]`, largest difference of a coordinate of each matched box, in pixels.
        score_errors: `[P]`, differences of matched scores.
        mask_errors: `[P]`, largest difference of each matched mask's probabilities.
        mask_ious: `[P]`, IoU of matched masks at probability 0.5; 1 where both are empty.
    """

    pairs: np.ndarray
    extra: np.ndarray
    missing: np.ndarray
    box_errors: np.ndarray
    score_errors: np.ndarray
    mask_errors: np.ndarray
    mask_ious: np.ndarray


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union `[A, B]` of boxes `[A, 4]` and `[B, 4]`; 0 where both are empty."""
    a, b = boxes[:, None].astype(np.float64), others[None].astype(np.float64)
    overlap = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = overlap.clip(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def match(actual: Detections, expected: Detections) -> Match:
    """Pairs detections of one class, those that overlap most first; each is used once."""
    overlap = box_iou(actual.boxes, expected.boxes)
    overlap[actual.labels[:, None] != expected.labels[None]] = 0
    pairs = []
    while overlap.size and overlap.max() > SAME_OBJECT:
        i, j = np.unravel_index(int(overlap.argmax()), overlap.shape)
        pairs.append((int(i), int(j)))
        overlap[i, :], overlap[:, j] = 0, 0
    found = np.array(pairs, np.int64).reshape(-1, 2)
    mine, theirs = found[:, 0], found[:, 1]
    return Match(
        found,
        np.setdiff1d(np.arange(len(actual)), mine),
        np.setdiff1d(np.arange(len(expected)), theirs),
        _largest(actual.boxes[mine] - expected.boxes[theirs]),
        _largest(actual.scores[mine] - expected.scores[theirs]),
        _largest(actual.masks[mine] - expected.masks[theirs]),
        _ious(actual.masks[mine] >= 0.5, expected.masks[theirs] >= 0.5),
    )


def _largest(differences: np.ndarray) -> np.ndarray:
    """The largest magnitude of each pair's values; NaN counts as infinite."""
    magnitudes = np.abs(differences.astype(np.float64))
    inner = tuple(range(1, magnitudes.ndim))
    return np.max(np.where(np.isnan(magnitudes), np.inf, magnitudes), axis=inner, initial=0.0)


def _ious(masks: np.ndarray, others: np.ndarray) -> np.ndarray:
    shared = (masks & others).sum((1, 2))
    union = (masks | others).sum((1, 2))
    return np.where(union > 0, shared / np.maximum(union, 1), 1)
