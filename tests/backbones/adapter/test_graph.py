"""The backbone's graph computes what the official code computes, in every token mode."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy.detection.config import STRIDES, SizeRange, Task
from svit_deploy.detection.graph.backbone import AdapterGraph, feature_name, rows_within
from svit_deploy.detection.model import load_detector
from svit_deploy.detection.reference import AdapterReference
from svit_deploy.models import Model, without_gates
from svit_deploy.models.reference import keep_above, keep_budget

from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.graph.check import finish
from svit_deploy.model.config import TokenMode

FREE = SizeRange.parse("64x64:96x128:256x256")
CASES = [
    ("svit_adapter", "96x128", "dynamic"),
    ("svit_adapter", "96x128", "masked"),
    ("svit_adapter", "96x128", "budget"),
    ("vit_adapter_dense", "96x128", "dense"),
]
BOTH = [(*case, sizes) for case in CASES for sizes in (FREE, SizeRange.parse(case[1]))]


def run(
    model: Model, mode: str, images: np.ndarray, sizes: SizeRange, budgets: Any = ()
) -> dict[str, np.ndarray]:
    if mode == "budget" and not budgets:
        budgets = (1.0,) * 9
    graph = AdapterGraph(model, TokenMode(mode), shares=budgets, sizes=sizes).build()
    with OnnxRuntimeEngine(finish(graph, {}, "0").SerializeToString(), threads=1) as engine:
        return engine.run({"images": images})


def check(found: Any, size: str, outputs: dict[str, np.ndarray], images: slice) -> None:
    for stride, expected in zip(STRIDES, found.features(size), strict=True):
        actual = outputs[feature_name(stride)]
        np.testing.assert_allclose(actual, expected[images], rtol=0, atol=2e-5)
    if f"keep_masks_{size}" in found.arrays:
        keep, margin = (found.arrays[f"{k}_{size}"] for k in ("keep_masks", "gate_logits"))
        assert (outputs["keep_mask"] == keep.transpose(1, 0, 2)[images]).all()
        margin = margin.transpose(1, 0, 2)[images]
        np.testing.assert_allclose(outputs["margin"], margin, rtol=0, atol=5e-5)


@pytest.mark.parametrize(("name", "size", "mode", "sizes"), BOTH)
def test_equals_the_official_code(
    golden: Any, name: str, size: str, mode: str, sizes: SizeRange
) -> None:
    found = golden(name)
    model, images = found.backbone, found.arrays[f"input_{size}"]
    model = replace(model, config=replace(model.config, image_size=sizes.opt))
    check(found, size, run(model, mode, images, sizes), slice(None))
    check(found, size, run(model, mode, images[1:], sizes), slice(1, 2))


@pytest.mark.parametrize("mode", ["dynamic", "budget", "masked"])
def test_one_graph_runs_both_orientations(golden: Any, mode: str) -> None:
    found = golden("svit_adapter")
    graph = AdapterGraph(found.backbone, TokenMode(mode), shares=(1.0,) * 9, sizes=FREE).build()
    with OnnxRuntimeEngine(finish(graph, {}, "0").SerializeToString(), threads=1) as engine:
        for size in ("96x128", "160x96"):
            outputs = engine.run({"images": found.arrays[f"input_{size}"]})
            check(found, size, outputs, slice(None))


@pytest.mark.parametrize("sizes", [FREE, SizeRange.parse("160x96")])
def test_a_budget_cuts_the_lowest_margins(golden: Any, sizes: SizeRange) -> None:
    found = golden("svit_adapter")
    model, images = found.backbone, found.arrays["input_160x96"]
    model = replace(model, config=replace(model.config, image_size=sizes.opt))
    shares = (0.5,) * 3 + (0.333,) * 3 + (0.25,) * 3
    outputs = run(model, "budget", images, sizes, shares)
    rows = [rows_within(share, 60) for share in shares]
    assert rows == [30] * 3 + [20] * 3 + [15] * 3
    rule = keep_budget(keep_above(model.config.thresholds), rows)
    expected = AdapterReference(model).backbone(images, rule)
    assert (outputs["keep_mask"] == expected.keep_mask.numpy()).all()
    for stride, feature in zip(STRIDES, expected.features, strict=True):
        np.testing.assert_allclose(
            outputs[feature_name(stride)], feature.numpy(), rtol=0, atol=2e-5
        )
    assert outputs["overflow"].max() > 0


def test_dense_twin_of_a_sparse_backbone(golden: Any) -> None:
    found = golden("svit_adapter")
    twin, images = without_gates(found.backbone), found.arrays["input_160x96"]
    outputs = run(twin, "dense", images, FREE)
    expected = AdapterReference(twin).backbone(images).features
    for stride, feature in zip(STRIDES, expected, strict=True):
        np.testing.assert_allclose(
            outputs[feature_name(stride)], feature.numpy(), rtol=0, atol=2e-5
        )


@pytest.mark.parametrize(("heads", "batch"), [("3", 1), ("3", 2), ("1", 2)])
@pytest.mark.parametrize("mode", ["dynamic", "budget", "masked"])
def test_odd_head_counts_run_in_batches(golden: Any, mode: str, heads: str, batch: int) -> None:
    """The official code cannot; three heads are those of SViT-Adapter-T."""
    found = golden("svit_adapter")
    model = load_detector(found.path, Task.BACKBONE, overrides={"num_heads": heads})
    images = found.arrays["input_96x128"][:batch]
    outputs = run(model, mode, images, FREE)
    alone = [AdapterReference(model).backbone(image[None]).features for image in images]
    for stride, maps in zip(STRIDES, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(
            outputs[feature_name(stride)], np.concatenate(maps), rtol=0, atol=2e-5
        )


@pytest.mark.parametrize("threshold", [-1e30, 1e30])
@pytest.mark.parametrize("mode", ["dynamic", "budget", "masked"])
def test_everything_and_nothing_kept(golden: Any, mode: str, threshold: float) -> None:
    found = golden("svit_adapter")
    config = replace(found.backbone.config, thresholds=(threshold,) * 9)
    model = replace(found.backbone, config=config)
    images = found.arrays["input_96x128"]
    outputs = run(model, mode, images, FREE)
    assert (outputs["keep_mask"] == (threshold < 0)).all()
    expected = AdapterReference(model).backbone(images).features
    for stride, feature in zip(STRIDES, expected, strict=True):
        np.testing.assert_allclose(
            outputs[feature_name(stride)], feature.numpy(), rtol=0, atol=3e-5
        )
