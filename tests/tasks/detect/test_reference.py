"""The PyTorch reference computes what the official code computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy.detection.reference import AdapterReference

CASES = [("svit_adapter", "96x128"), ("svit_adapter", "160x96"), ("vit_adapter_dense", "96x128")]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_backbone_equals_the_official_code(golden: Any, name: str, size: str) -> None:
    found = golden(name)
    outputs = AdapterReference(found.backbone).backbone(found.arrays[f"input_{size}"])
    for ours, theirs in zip(outputs.features, found.features(size), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=2e-5)
    if name == "svit_adapter":
        keep, margin = (found.arrays[f"{k}_{size}"] for k in ("keep_masks", "gate_logits"))
        assert (outputs.keep_mask.numpy() == keep.transpose(1, 0, 2)).all()
        np.testing.assert_allclose(
            outputs.margin.numpy(), margin.transpose(1, 0, 2), rtol=0, atol=5e-5
        )
    else:
        assert outputs.keep_mask.shape[1] == 0


@pytest.mark.parametrize("image", [0, 1, 2])
def test_detector_equals_the_official_code(golden: Any, image: int) -> None:
    pytest.importorskip("torchvision")
    from svit_deploy.detection.postprocess import paste_masks
    from svit_deploy.detection.reference_heads import DetectorReference

    found = golden("svit_mask_rcnn")
    facts, arrays = found.meta["per_image"][image], found.arrays
    reference = DetectorReference(found.detector)
    inputs, size = arrays[f"input_{image}"][0], tuple(facts["img_shape"])
    scale = [facts["scale_factor"]] * 4
    outputs = reference.detect(inputs, size, scale)
    pyramid = reference.fpn(outputs.backbone.features)
    for level, feature in enumerate(pyramid, 2):
        if f"p{level}_{image}" in arrays:
            expected = arrays[f"p{level}_{image}"]
            np.testing.assert_allclose(feature.numpy(), expected, rtol=0, atol=2e-5)
    keep = arrays[f"keep_masks_{image}"].transpose(1, 0, 2)
    assert (outputs.backbone.keep_mask.numpy() == keep).all()
    proposals = arrays[f"proposals_{image}"]
    assert len(outputs.proposals) == facts["n_proposals"]
    np.testing.assert_allclose(np.sort(outputs.scores), np.sort(proposals[:, 4]), rtol=0, atol=2e-5)
    nearest = np.abs(outputs.proposals[:, None] - proposals[None, :, :4]).max(2).min(1)
    assert nearest.max() < 1e-3
    boxes, labels = arrays[f"det_bboxes_rescaled_{image}"], arrays[f"det_labels_{image}"]
    masks, detections = arrays[f"mask_prob28_{image}"], outputs.detections
    assert len(detections) == len(boxes)
    order = [
        int(np.argmin(np.abs(boxes[:, :4] - box).max(1) + 1e4 * (labels != label)))
        for box, label in zip(detections.boxes, detections.labels, strict=True)
    ]
    assert sorted(order) == list(range(len(boxes)))
    np.testing.assert_allclose(detections.boxes, boxes[order, :4], rtol=0, atol=1e-3)
    np.testing.assert_allclose(detections.scores, boxes[order, 4], rtol=0, atol=2e-5)
    # 2.2e-5 is what one mask of the third image differs by between one thread and two.
    np.testing.assert_allclose(detections.masks, masks[order], rtol=0, atol=3e-5)
    original = tuple(facts["ori_shape"])
    packed = arrays[f"masks_packed_{image}"][order]
    expected = np.unpackbits(packed, axis=-1, count=original[1]).astype(bool)
    pasted = paste_masks(detections.masks, detections.boxes, original)
    assert (pasted != expected).sum() <= 2  # a pixel at the threshold is a coin toss
