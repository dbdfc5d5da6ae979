"""Half-precision graphs seen from float32."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

pytest.importorskip("torch")

from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import InputError
from svit_deploy.export.pipeline import build_graph
from svit_deploy.export.settings import ExportSettings
from svit_deploy.graph.edit import add_outputs
from svit_deploy.graph.half_precision import emulate_halves, inline_functions, view_in_float32
from svit_deploy.model.config import TokenMode
from svit_deploy.model.sizes import SizeRange


def masked(model, precision):
    settings = ExportSettings(tokens=TokenMode.MASKED, precision=precision)
    return build_graph(model, settings, (), SizeRange.single(model.config.image_size), {})


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)]
)
def test_emulated_values_are_halves(golden, precision, dtype):
    found = golden("svit_cls")
    emulated = add_outputs(emulate_halves(masked(found.model, precision)), ["block_5.out"])
    with OnnxRuntimeEngine(emulated.SerializeToString()) as engine:
        values = engine.run({"images": found.inputs})["block_5.out"]
    assert np.abs(values).max() > 0.1
    assert np.array_equal(values, values.astype(dtype).astype(np.float32))


def test_functions_of_another_type_than_their_caller_are_refused():
    body = [helper.make_node("Not", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("acme", 1)]
    function = helper.make_function("acme", "Call", ["a"], ["b"], body, opsets[:1])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph(
        [helper.make_node("Call", ["x"], ["y"], domain="acme")], "g", [x], [y]
    )
    model = helper.make_model(graph, functions=[function], opset_imports=opsets)
    with pytest.raises(InputError, match="functions and types do not fit"):
        inline_functions(model)


def test_a_view_in_float32_changes_nothing(golden):
    model = masked(golden("svit_cls").model, "fp16")
    viewed = add_outputs(view_in_float32(model, ["block_5.out", "logits"]), ["block_5.out"])
    feeds = {"images": golden("svit_cls").inputs}
    with OnnxRuntimeEngine(model.SerializeToString(), graph_optimization="none") as engine:
        plain = engine.run(feeds)
    with OnnxRuntimeEngine(viewed.SerializeToString(), graph_optimization="none") as engine:
        seen = engine.run(feeds)
    assert seen.pop("block_5.out").dtype == np.float32
    assert all(np.array_equal(plain[name], seen[name]) for name in plain)
