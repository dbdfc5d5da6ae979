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
