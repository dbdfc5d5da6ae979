"""The PyTorch reference of Mask R-CNN computes what the official code computes, step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")

import torch

from svit_deploy.tasks import TASKS
from svit_deploy.tasks.detect.detections import Detections, paste_masks
from svit_deploy.tasks.detect.reference import MaskRcnnReference
from svit_deploy.tasks.reference import Reference
from tests.tasks.detect.official import image_of, kept_of, order_of

IMAGES = [("svit_mask_rcnn", 0), ("svit_mask_rcnn", 1), ("svit_mask_rcnn", 2)]
IMAGES += [("evovit_mask_rcnn", 0), ("evovit_mask_rcnn", 1)]


@pytest.mark.parametrize(("name", "image"), IMAGES)
def test_detector_equals_the_official_code(detection_golden: Any, name: str, image: int) -> None:
    found = detection_golden(name)
    facts, arrays, one = found.meta["per_image"][image], found.arrays, image_of(found, image)
    reference = Reference(found.detector, TASKS["detect"])
    result = reference.run([one], stages=True)
    assert kept_of(found, image, result.selected.keep_mask)

    heads = MaskRcnnReference(reference.backbone)
    features = [torch.from_numpy(result.stages[f"stride_{stride}"]) for stride in (4, 8, 16, 32)]
    pyramid = heads.fpn(features)
    for level, feature in enumerate(pyramid, 2):
        if f"p{level}_{image}" in arrays:
            expected = arrays[f"p{level}_{image}"]
            np.testing.assert_allclose(feature.numpy(), expected, rtol=0, atol=2e-5)
    scores, boxes = (value.numpy() for value in heads.rpn(pyramid, one.image_size))
    proposals = arrays[f"proposals_{image}"]
    assert len(boxes) == facts["n_proposals"]
    np.testing.assert_allclose(np.sort(scores), np.sort(proposals[:, 4]), rtol=0, atol=2e-5)
    nearest = np.abs(boxes[:, None] - proposals[None, :, :4]).max(2).min(1)
    assert nearest.max() < 1e-3

    detections = Detections.of(result.outputs[0])
    order = order_of(found, image, detections)
    height, width = one.original_size
    packed = arrays[f"masks_packed_{image}"][order]
    expected = np.unpackbits(packed, axis=-1, count=width).astype(bool)
    pasted = paste_masks(detections.masks, detections.boxes, (height, width))
    assert (pasted != expected).sum() <= 2  # a pixel at the threshold is a near tie


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_cascade", "stvitr_cascade"])
@pytest.mark.parametrize("image", [0, 1])
def test_cascade_equals_the_official_code(detection_golden: Any, image: int, name: str) -> None:
    found = detection_golden(name)
    result = Reference(found.detector, TASKS["cascade"]).run([image_of(found, image)])
    order_of(found, image, Detections.of(result.outputs[0]))
