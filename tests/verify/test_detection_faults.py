"""Deliberately broken detectors: verify must refuse each, and name the stage that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")

from svit_deploy.backbones.adapter import deformable, pyramid
from svit_deploy.backbones.adapter import graph as adapter
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.graph.builder import GraphBuilder
from svit_deploy.model.config import TokenMode
from svit_deploy.model.model import Model
from svit_deploy.model.sizes import SizeRange
from svit_deploy.tasks.detect import boxes
from svit_deploy.tasks.detect import graph as heads

pytestmark = pytest.mark.slow

Patch = Callable[[pytest.MonkeyPatch, Model], Model]
SIZES = SizeRange.parse("64x64:96x128:128x128", 32)


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


def numbers(**changes: Any) -> Patch:
    """Other numbers of the heads."""
    return lambda monkeypatch, model: replace(
        model, config=replace(model.config, task=replace(model.config.task, **changes))
    )


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

    monkeypatch.setattr(adapter, "make_geometry", exchanged)
    return model


def centred_anchors(monkeypatch: pytest.MonkeyPatch, model: Model) -> Model:
    make = boxes.anchors

    def centred(graph: Any, size: Any, stride: int) -> str:
        return graph.op("Add", make(graph, size, stride), boxes.number(graph, stride / 2))

    monkeypatch.setattr(heads, "anchors", centred)
    return model


def no_level(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"level_embed": 0 * found["level_embed"]}


def class_first(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The background as the first class."""
    name = "roi_head.bbox_head.fc_cls"
    return {f"{name}.{p}": np.roll(found[f"{name}.{p}"], 1, axis=0) for p in ("weight", "bias")}


def turned_positions(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows and columns exchanged."""
    first, cells = np.split(found["pos_embed"], [1], axis=1)
    grid = cells.reshape(1, 14, 14, -1).transpose(0, 2, 1, 3).reshape(cells.shape)
    return {"pos_embed": np.concatenate([first, grid], axis=1)}


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
    "boxes' deviations": (constant(heads, "BOX_STDS", (0.1,) * 4), HEADS, "differ|no partner"),
    "levels of boxes": (constant(boxes, "FINEST", 28), HEADS, "differ|no partner"),
    "boxes not aligned": (
        attribute("RoiAlign", "coordinate_transformation_mode", "output_half_pixel"),
        HEADS,
        "differ|no partner",
    ),
    "fixed sampling of boxes": (attribute("RoiAlign", "sampling_ratio", 2), HEADS, "differ"),
    "background first": (weights(class_first), HEADS, "no partner"),
    "proposals suppressed less": (numbers(rpn_iou=0.9), "configuration", "rpn_iou"),
    "position table turned": (weights(turned_positions), STAGE, "embedding"),
}


@pytest.fixture
def report(detector, photo, tmp_path, monkeypatch, verify):
    """Exports the detector with a fault, and verifies it without one."""

    def export_and_verify(patch: Patch | None) -> Any:
        settings = ExportSettings(task="detect", tokens=TokenMode.DYNAMIC, calibration=photo)
        with monkeypatch.context() as context:
            broken = patch(context, detector) if patch else detector
            bundle = export_model(broken, tmp_path / "bundle", settings, sizes=SIZES)
        return verify(bundle, detector)

    return export_and_verify


def test_a_correct_export_passes(report):
    found = report(None)
    assert found.passed, found.verdict
    assert found.results["detections"]["detections"] == 15


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused_and_named(report, monkeypatch, fault):
    """By its parity with the reference alone: behaviour costs more and could not tell where."""
    monkeypatch.setattr("svit_deploy.verify.run.check_behaviour", lambda *arguments: None)
    patch, check, words = FAULTS[fault]
    found = report(patch)
    failed = {check.name: check.detail for check in found.checks if not check.passed}
    assert next(iter(failed), None) == check, failed
    assert any(word in failed[check] for word in words.split("|")), failed[check]
