"""Deliberately broken exports: verify must refuse each, and name the stage that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")

from svit_deploy.detection.bundle import DetectionBundle
from svit_deploy.detection.config import SizeRange, Task
from svit_deploy.detection.export import export_detector
from svit_deploy.detection.graph import backbone, boxes, deformable, detector, pyramid
from svit_deploy.detection.settings import DetectionSettings
from svit_deploy.detection.verify import RecomputedDetections, verify_detection
from svit_deploy.models import Model
from svit_deploy.verify.subject import VerifySettings

from svit_deploy.graph.builder import GraphBuilder
from svit_deploy.model.config import TokenMode

Patch = Callable[[pytest.MonkeyPatch, Model], Model]
SETTINGS = DetectionSettings(
    tokens=TokenMode.DYNAMIC, sizes=SizeRange.parse("64x64:96x128:256x256"), task=Task.DETECT
)


def constant(module: Any, name: str, value: Any) -> Patch:
    def patch(monkeypatch: pytest.MonkeyPatch, model: Model) -> Model:
        monkeypatch.setattr(module, name, value)
        return model

    return patch


def weights(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Patch:
    """Other weights in the graph than in the reference."""
    return lambda monkeypatch, model: replace(model, weights=model.weights | change(model.weights))


def config(**changes: Any) -> Patch:
    return lambda monkeypatch, model: replace(model, config=replace(model.config, **changes))


def attribute(op: str, name: str, value: Any) -> Patch:
    """Another attribute in every operator of one type."""

    def patch(monkeypatch: pytest.MonkeyPatch, model: Model) -> Model:
        write = GraphBuilder.ops

        def ops(self: GraphBuilder, op_type: str, *inputs: str, **attributes: Any) -> Any:
            if op_type == op:
                attributes[name] = value
            return write(self, op_type, *inputs, **attributes)

        monkeypatch.setattr(GraphBuilder, "ops", ops)
        return model

    return patch


def exchange_sides(monkeypatch: pytest.MonkeyPatch, model: Model) -> Model:
    """Offsets measured in the height where they should be in the width, and the reverse."""
    make = deformable.make_geometry

    def exchanged(graph: Any, *arguments: Any) -> Any:
        geometry = make(graph, *arguments)
        pixel = graph.op("Gather", geometry.pixel, graph.constant([1, 0]), axis=1)
        return replace(geometry, pixel=pixel)

    monkeypatch.setattr(backbone, "make_geometry", exchanged)
    return model


def centred_anchors(monkeypatch: pytest.MonkeyPatch, model: Model) -> Model:
    make = boxes.anchors

    def centred(graph: Any, size: Any, stride: int) -> str:
        return graph.op("Add", make(graph, size, stride), boxes.number(graph, stride / 2))

    monkeypatch.setattr(detector, "anchors", centred)
    return model


def no_level(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"level_embed": 0 * found["level_embed"]}


def class_first(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The background as the first class."""
    name = "roi_head.bbox_head.fc_cls"
    return {f"{name}.{p}": np.roll(found[f"{name}.{p}"], 1, axis=0) for p in ("weight", "bias")}


STAGE, HEADS = "every stage by itself", "heads by themselves"
FAULTS: dict[str, tuple[Patch, str, str]] = {
    "epsilon of batch norms": (constant(pyramid, "BATCH_NORM_EPS", 1e-3), STAGE, "pyramid"),
    "epsilon of blocks": (config(block_eps=1e-6), "configuration", "block_eps"),
    "GELU by tanh": (attribute("Gelu", "approximate", "tanh"), STAGE, ""),
    "samples across": (exchange_sides, STAGE, "injector 0"),
    "samples at corners": (attribute("GridSample", "align_corners", 1), STAGE, "injector 0"),
    "samples at borders": (attribute("GridSample", "padding_mode", "border"), STAGE, "injector 0"),
    "nearest samples": (attribute("GridSample", "mode", "nearest"), STAGE, "injector 0"),
    "levels not told apart": (weights(no_level), STAGE, "pyramid"),
    "anchors in the middle": (centred_anchors, HEADS, "boxes differ|no partner"),
    "anchors turned": (constant(boxes, "RATIOS", (2.0, 1.0, 0.5)), HEADS, "no partner|differ"),
    "boxes' deviations": (constant(detector, "BOX_STDS", (0.1,) * 4), HEADS, "differ|no partner"),
    "levels of boxes": (constant(boxes, "FINEST", 28), HEADS, "differ|no partner"),
    "boxes not aligned": (
        attribute("RoiAlign", "coordinate_transformation_mode", "output_half_pixel"),
        HEADS,
        "differ|no partner",
    ),
    "fixed sampling of boxes": (attribute("RoiAlign", "sampling_ratio", 2), HEADS, "differ"),
    "background first": (weights(class_first), HEADS, "no partner"),
    "proposals suppressed less": (config(rpn_iou=0.9), "configuration", "rpn_iou"),
    "position table turned": (
        weights(
            lambda found: {
                "pos_embed": np.concatenate(
                    [
                        found["pos_embed"][:, :1],
                        found["pos_embed"][:, 1:]
                        .reshape(1, 14, 14, -1)
                        .transpose(0, 2, 1, 3)
                        .reshape(1, 196, -1),
                    ],
                    1,
                )
            }
        ),
        STAGE,
        "embedding",
    ),
}


def export_and_verify(
    golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patch: Patch | None
) -> Any:
    model = golden("svit_mask_rcnn").detector
    with monkeypatch.context() as context:
        broken = patch(context, model) if patch else model
        bundle = export_detector(broken, tmp_path / "bundle", SETTINGS)
    assert isinstance(bundle, DetectionBundle)
    expectations = RecomputedDetections(bundle, model, None)
    return verify_detection(bundle, expectations, VerifySettings(threads=1))


def test_a_correct_export_passes(
    golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export_and_verify(golden, tmp_path, monkeypatch, None).passed


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused_and_named(
    golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    patch, check, words = FAULTS[fault]
    report = export_and_verify(golden, tmp_path, monkeypatch, patch)
    failed = {found.name: found.detail for found in report.checks if not found.passed}
    assert next(iter(failed), None) == check, failed
    assert any(word in failed[check] for word in words.split("|")), failed[check]
