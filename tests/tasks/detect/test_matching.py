"""Matching of detections, and masks pasted into pictures."""

from __future__ import annotations

import numpy as np
import pytest

from svit_deploy.tasks.detect.detections import Detections, paste_masks, split_images
from svit_deploy.tasks.detect.matching import box_iou, match


def some(count: int, seed: int = 0) -> Detections:
    rng = np.random.default_rng(seed)
    corner = 60 * np.arange(count)[:, None] + 10 * rng.random((count, 2))
    boxes = np.concatenate([corner, corner + 20 + 20 * rng.random((count, 2))], 1)
    scores = np.sort(rng.random(count))[::-1]
    labels = rng.integers(0, 3, count)
    masks = rng.random((count, 28, 28))
    return Detections(
        boxes.astype(np.float32), scores.astype(np.float32), labels, masks.astype(np.float32)
    )


def take(found: Detections, numbers: list[int]) -> Detections:
    values = (found.boxes, found.scores, found.labels, found.masks)
    return Detections(*(value[numbers] for value in values))


def test_order_does_not_matter() -> None:
    found = some(8)
    order = [3, 1, 7, 0, 2, 6, 5, 4]
    result = match(take(found, order), found)
    assert sorted(map(tuple, result.pairs)) == sorted((i, j) for i, j in enumerate(order))
    assert not len(result.extra) and not len(result.missing)
    assert not result.box_errors.any() and not result.score_errors.any()
    assert not result.mask_errors.any() and (result.mask_ious == 1).all()


def test_differences_are_those_of_partners() -> None:
    found = some(5)
    moved = Detections(found.boxes + np.float32(0.25), found.scores, found.labels, 1 - found.masks)
    result = match(moved, found)
    assert result.box_errors == pytest.approx(np.full(5, 0.25), abs=1e-4)
    assert not result.score_errors.any()
    assert result.mask_errors.min() > 0.9 and result.mask_ious.max() < 0.1


def test_class_and_overlap_decide() -> None:
    found = some(4)
    other = Detections(found.boxes, found.scores, (found.labels + 1) % 3, found.masks)
    result = match(other, found)
    assert not len(result.pairs) and list(result.extra) == list(result.missing) == [0, 1, 2, 3]
    result = match(take(found, [0, 2]), found)
    assert list(result.missing) == [1, 3] and not len(result.extra)


def test_nothing_matches_nothing() -> None:
    none = take(some(1), [])
    for a, b in ((none, none), (some(2), none), (none, some(2))):
        result = match(a, b)
        assert (len(result.extra), len(result.missing)) == (len(a), len(b))


def test_not_a_number_is_an_infinite_error() -> None:
    found = some(2)
    broken = Detections(found.boxes, found.scores * np.float32(np.nan), found.labels, found.masks)
    assert np.isinf(match(broken, found).score_errors).all()


def test_box_iou() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 5, 5]], np.float32)
    expected = [[1, 1 / 7, 0], [1 / 7, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(box_iou(boxes, boxes), expected)


def test_split_images_gives_each_image_its_own_best_first() -> None:
    found = some(4)
    outputs = {
        "boxes": found.boxes,
        "scores": np.array([0.1, 0.9, 0.5, 0.7], np.float32),
        "labels": found.labels,
        "masks": found.masks,
        "image_index": np.array([2, 0, 2, 2]),
    }
    parts = split_images(outputs, 3)
    assert [len(part) for part in parts] == [1, 0, 3]
    np.testing.assert_allclose(parts[2].scores, [0.7, 0.5, 0.1])
    assert len(parts[2].above(0.5)) == 2


def test_masks_are_pasted_inside_their_boxes_only() -> None:
    masks = np.ones((2, 28, 28), np.float32)
    boxes = np.array([[2, 3, 10, 7], [-5, -5, 4, 4]], np.float32)
    pasted = paste_masks(masks, boxes, (12, 16))
    expected = np.zeros((2, 12, 16), bool)
    expected[0, 3:7, 2:10] = True
    expected[1, :4, :4] = True
    assert (pasted == expected).all()
    assert not paste_masks(masks, np.zeros((2, 4), np.float32), (12, 16)).any()
    assert paste_masks(masks[:0], boxes[:0], (12, 16)).shape == (0, 12, 16)
