"""Graphs with plugin nodes: the same numbers to the bit, and nothing that a plugin should do."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.export.pipeline import build_graph, export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.graph.half_precision import inline_functions
from svit_deploy.model.budget import budgets_of
from svit_deploy.model.config import TokenMode
from svit_deploy.model.sizes import SizeRange
from svit_deploy.verify.expected import LiveReference
from svit_deploy.verify.run import verify_against
from svit_deploy.verify.settings import VerifySettings

pytestmark = pytest.mark.slow

NAMES = {"SvitCompact", "SvitGather", "SvitScatter"}


def build(model, mode, plugins, precision="fp32"):
    config = model.config
    budgets = budgets_of(config, [9] * config.num_gates) if mode == "budget" else ()
    settings = ExportSettings(tokens=TokenMode(mode), precision=precision, plugins=plugins)
    return build_graph(model, settings, budgets, SizeRange.single(config.image_size), {})


def run(model, images):
    with OnnxRuntimeEngine(model.SerializeToString(), threads=1) as engine:
        return engine.run({"images": images})


@pytest.mark.parametrize("name", ["svit_cls", "svit_cls_empty_gate"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("mode", ["dynamic", "budget"])
def test_bit_for_bit_the_graph_without_plugins(golden, mode, precision, name):
    found = golden(name)
    plain = run(build(found.model, mode, False, precision), found.inputs)
    model = build(found.model, mode, True, precision)
    assert {f.name for f in model.functions} == (
        NAMES if mode == "dynamic" else NAMES - {"SvitCompact"}
    )
    for candidate in (model, inline_functions(model)):
        actual = run(candidate, found.inputs)
        assert actual.keys() == plain.keys()
        assert all(np.array_equal(actual[key], plain[key]) for key in plain)


def test_dynamic_needs_no_operator_of_data_dependent_shape(golden):
    model = build(golden("svit_cls").model, "dynamic", True)
    used = {node.op_type for node in model.graph.node}
    assert used >= NAMES
    assert not used & {"NonZero", "CumSum", "ScatterND", "Compress", "Range"}
    assert "NonZero" in {
        n.op_type for n in build(golden("svit_cls").model, "dynamic", False).graph.node
    }


def test_nodes_say_what_a_parser_looks_for(golden):
    model = build(golden("svit_cls").model, "dynamic", True)
    for node in (node for node in model.graph.node if node.op_type in NAMES):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert node.domain == "trt.plugins"
        assert (attributes["plugin_namespace"], attributes["plugin_version"]) == (b"svit", b"1")
        assert ("index_bits" in attributes) == (node.op_type == "SvitCompact")


def test_what_attention_without_padding_needs_has_names(golden):
    model = build(golden("svit_cls").model, "dynamic", True)
    produced = {name for node in model.graph.node for name in node.output}
    for block in golden("svit_cls").model.config.gate_blocks:
        parts = ("query", "key", "value", "mixed", "lengths")
        assert produced >= {f"block_{block}.{part}" for part in parts}


def test_modes_without_row_moves_have_no_functions(golden):
    assert not build(golden("svit_cls").model, "masked", True).functions


@pytest.mark.parametrize("mode", ["dynamic", "budget"])
def test_verify_takes_a_graph_with_plugins(golden, tmp_path, mode):
    found = golden("svit_cls")
    budget = "0.7" if mode == "budget" else None
    settings = ExportSettings(tokens=TokenMode(mode), plugins=True, budget=budget)
    bundle = export_model(found.model, tmp_path / "out", settings)
    reference = LiveReference(bundle, found.model, found.images)
    report = verify_against(bundle, reference, VerifySettings(threads=1, repeats=2))
    assert report.passed, report.verdict
    assert any(stage.name == "block 3" for stage in report.stages)
