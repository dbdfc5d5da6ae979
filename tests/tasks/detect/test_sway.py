"""Limits of detections grow with what rounding does to the reference's own, and no further."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from svit_deploy.tasks.detect.compare import SWAY, compare_detections, faults, widened
from svit_deploy.tasks.detect.detections import Detections
from svit_deploy.tasks.detect.limits import DETECTION_LIMITS

CONFIG = SimpleNamespace(
    task=SimpleNamespace(resize=(800, 1333), min_score=0.05, max_detections=100)
)
LIMITS = DETECTION_LIMITS["fp32"]


def found(count=50, moved=0.0):
    """Detections on a grid, all boxes moved to the right."""
    left = 20.0 * np.arange(count) + moved
    boxes = np.stack([left, np.zeros(count), left + 10, np.full(count, 10)], 1).astype(np.float32)
    scores = np.linspace(0.9, 0.5, count).astype(np.float32)
    masks = np.full((count, 28, 28), 0.9, np.float32)
    return Detections(boxes, scores, np.zeros(count, np.int64), masks)


def test_limits_stay_where_rounding_moves_nothing():
    assert widened(LIMITS, [(found(), found())], CONFIG) == LIMITS


def test_boxes_have_room_for_a_small_multiple():
    room = widened(LIMITS, [(found(moved=0.1), found())], CONFIG)
    side = max(CONFIG.task.resize)
    assert room.box * side == pytest.approx(SWAY * 0.1, rel=1e-3)
    assert replace(room, box=LIMITS.box) == LIMITS
    for shift, holds in ((0.3, True), (0.5, False)):
        compared = compare_detections([(found(moved=shift), found())], CONFIG, room)
        assert (not faults(compared, room, CONFIG)) == holds


def test_a_few_that_suppression_exchanged_give_no_room_to_the_rest():
    theirs, mine = found(), found()
    mine.boxes[0, [0, 2]] += 3.0
    room = widened(LIMITS, [(mine, theirs)], CONFIG)
    assert room.box == LIMITS.box
    assert room.moved == pytest.approx(SWAY / 50)
    compared = compare_detections([(found(moved=0.3), theirs)], CONFIG, room)
    assert any("boxes differ" in words for words in faults(compared, room, CONFIG))


def test_as_many_more_may_lack_a_partner():
    theirs = found(40)
    mine = Detections(theirs.boxes[1:], theirs.scores[1:], theirs.labels[1:], theirs.masks[1:])
    assert faults(compare_detections([(mine, theirs)], CONFIG, LIMITS), LIMITS, CONFIG)
    room = widened(LIMITS, [(mine, theirs)], CONFIG)
    assert not faults(compare_detections([(mine, theirs)], CONFIG, room), room, CONFIG)
