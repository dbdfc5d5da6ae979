"""SViT's selection inside an adapter: what a TensorRT build puts its own attention behind."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy.export.pipeline import build_graph
from svit_deploy.export.settings import ExportSettings
from svit_deploy.graph.half_precision import inline_functions
from svit_deploy.model.config import TokenMode
from svit_deploy.names import packed_name
from tests.backbones.adapter.running import FREE, STRIDES, engine_of
from tests.shortened import shortened

PARTS = ("query", "key", "value", "mixed", "lengths")


@pytest.mark.parametrize("mode", ["dynamic", "masked"])
def test_packed_attention_has_names_in_adapters_too(detection_golden, mode):
    model = shortened(detection_golden("svit_adapter").backbone)
    settings = ExportSettings(task="backbone", tokens=TokenMode(mode), plugins=True)
    graph = build_graph(model, settings, (), FREE, {})
    produced = {name for node in graph.graph.node for name in node.output}
    names = {packed_name(block, part) for block in model.config.gate_blocks for part in PARTS}
    assert len(names) == 15
    assert names <= produced if mode == "dynamic" else not names & produced


def test_an_adapter_with_plugin_nodes_computes_the_same(detection_golden):
    found = detection_golden("svit_adapter")
    model, images = shortened(found.backbone), found.arrays["input_96x128"]
    with engine_of(model, "dynamic") as engine:
        plain = engine.run({"images": images})
    with engine_of(model, "dynamic", plugins=True) as engine:
        functions = engine.run({"images": images})
    for name in (*STRIDES, "keep_mask", "margin"):
        np.testing.assert_array_equal(functions[name], plain[name])


def test_its_functions_can_be_written_out(detection_golden):
    settings = ExportSettings(task="backbone", tokens=TokenMode.DYNAMIC, plugins=True)
    model = shortened(detection_golden("svit_adapter").backbone)
    graph = build_graph(model, settings, (), FREE, {})
    assert graph.functions and not inline_functions(graph).functions
