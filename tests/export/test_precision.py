"""Half-precision graphs: what stays in float32, what verify says of them, faults in them."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

from svit_deploy.errors import ExportError, UsageError
from svit_deploy.export.pipeline import build_graph, export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.graph.layers import Layers
from svit_deploy.model.budget import budgets_of
from svit_deploy.model.config import TokenMode
from svit_deploy.model.sizes import SizeRange
from svit_deploy.tasks.limits import LIMITS
from svit_deploy.verify.expected import LiveReference, StoredReference
from svit_deploy.verify.run import verify_against

HALVES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
MODES = ["dynamic", "budget", "masked", "dense"]


@pytest.fixture
def graph(golden):
    def build(precision, mode="dynamic", model=None):
        model = model or (golden("svit_cls").dense if mode == "dense" else golden("svit_cls").model)
        config = model.config
        budgets = budgets_of(config, [9] * config.num_gates) if mode == "budget" else ()
        settings = ExportSettings(tokens=TokenMode(mode), precision=precision)
        return build_graph(model, settings, budgets, SizeRange.single(config.image_size), {})

    return build


def value_types(model):
    """Element type of every value of a graph."""
    found = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        found[value.name] = value.type.tensor_type.elem_type
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", HALVES)
def test_products_are_halves_and_what_must_not_lose_digits_is_float32(graph, precision, mode):
    model = graph(precision, mode)
    types = value_types(model)
    half = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(HALVES[precision]))
    seen = {"half": 0, "gate": 0, "reduction": 0}
    for node in model.graph.node:
        kind = types[node.input[0]]
        if node.op_type in ("LayerNormalization", "Softmax", "TopK", "Greater"):
            assert kind == onnx.TensorProto.FLOAT, node.name
            seen["reduction"] += 1
        elif node.op_type in ("Gemm", "MatMul", "Conv", "Gelu"):
            exact = "/gate/" in node.name or node.name.startswith("head/")
            assert kind == (onnx.TensorProto.FLOAT if exact else half), node.name
            seen["gate" if exact else "half"] += 1
    gates = 0 if mode == "dense" else 9
    assert seen["gate"] == 3 * gates + 1
    assert seen["half"] >= 12 * 8
    assert seen["reduction"] >= 12 * 3 + 1
    assert {v.name: v.type.tensor_type.elem_type for v in model.graph.input} == {"images": 1}
    assert types["logits"] == onnx.TensorProto.FLOAT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "mode"),
    [
        ("digits", "fp16", "dynamic"),
        ("digits", "fp16", "budget"),
        ("svit_cls", "bf16", "budget"),
        ("svit_cls", "fp16", "dense"),
    ],
)
def test_a_half_precision_export_is_accepted(
    golden, digits, heldout, tmp_path, name, precision, mode
):
    if name == "digits":
        model, images = digits, heldout[:24]
    else:
        model, images = golden(name).model, golden(name).images
    budget = "0.6" if mode == "budget" else None
    settings = ExportSettings(
        tokens=TokenMode(mode), precision=precision, budget=budget, calibration=images[:16]
    )
    bundle = export_model(model, tmp_path / "out", settings)
    assert bundle.precision == precision
    for report in (
        verify_against(bundle, LiveReference(bundle, model, images)),
        verify_against(bundle, StoredReference(bundle)),
    ):
        assert report.passed, report.verdict
        worst = {"block": 0.0, "gate": 0.0}
        for stage in report.stages:
            kind = stage.name.split()[0]
            worst[kind] = max(worst.get(kind, 0.0), stage.error)
        if worst["block"]:  # from a checkpoint, so each stage is seen by itself
            assert worst["block"] > 1e-5, "float32 was measured, not a half"
            assert worst["gate"] < 1e-4, "a gate by itself is exact"


@pytest.fixture
def parity_only(monkeypatch):
    """How a graph behaves cannot tell where it is wrong, and costs more."""
    monkeypatch.setattr("svit_deploy.verify.run.check_behaviour", lambda *arguments: None)


@pytest.mark.slow
@pytest.mark.usefixtures("parity_only")
@pytest.mark.parametrize("precision", HALVES)
def test_a_fault_in_a_half_precision_graph_is_refused(golden, tmp_path, monkeypatch, precision):
    monkeypatch.setattr("svit_deploy.graph.packed.MASKED", -1.0)
    found = golden("svit_cls")
    settings = ExportSettings(
        tokens=TokenMode.MASKED, precision=precision, calibration=found.images
    )
    bundle = export_model(found.model, tmp_path / "out", settings)
    report = verify_against(bundle, LiveReference(bundle, found.model))
    assert not report.passed
    assert "block" in report.verdict


@pytest.mark.slow
@pytest.mark.usefixtures("parity_only")
def test_a_gate_in_half_precision_is_refused(golden, tmp_path, monkeypatch):
    def half(self, x, name):
        if not name.startswith("gates"):
            return exact(self, x, name)
        graph = self.graph
        return graph.to_float32(self.linear(graph.to_precision(x), name))

    exact = Layers.exact_linear
    monkeypatch.setattr(Layers, "exact_linear", half)
    found = golden("svit_cls")
    settings = ExportSettings(precision="fp16", calibration=found.images)
    bundle = export_model(found.model, tmp_path / "out", settings)
    report = verify_against(bundle, LiveReference(bundle, found.model))
    assert not report.passed
    assert "gate 0" in report.verdict


def test_weights_beyond_float16(golden, graph):
    model = golden("svit_cls").model
    shape = model.weights["blocks.3.mlp.fc1.bias"].shape
    large = {**model.weights, "blocks.3.mlp.fc1.bias": np.full(shape, 1e5, np.float32)}
    model = dataclasses.replace(model, weights=large)
    with pytest.raises(ExportError, match=r"blocks.3.mlp.fc1.bias reaches 1e\+05.*bf16"):
        graph("fp16", model=model)
    assert graph("bf16", model=model).graph.node


def test_unknown_precision():
    with pytest.raises(UsageError, match="--precision 'int4' is unknown"):
        ExportSettings(precision="int4")


@pytest.mark.slow
def test_too_many_flips_are_refused_though_each_is_a_near_tie(
    digits, heldout, tmp_path, monkeypatch
):
    settings = ExportSettings(tokens=TokenMode.MASKED, precision="bf16", calibration=heldout[:2])
    bundle = export_model(digits, tmp_path / "out", settings)
    reference = LiveReference(bundle, digits, heldout[:60])
    assert verify_against(bundle, reference).passed
    strict = dataclasses.replace(LIMITS["bf16"], turned=1e-5)
    monkeypatch.setitem(LIMITS, "bf16", strict)
    monkeypatch.setattr("svit_deploy.verify.exported.HANDFUL", 0)
    monkeypatch.setattr("svit_deploy.verify.parity.predicted_flips", lambda *arguments: 0.0)
    report = verify_against(bundle, reference)
    assert [check.name for check in report.checks if not check.passed] == ["few decisions flip"]
