"""Half-precision graphs (float16, bfloat16) seen from float32: for `verify`, which edits graphs.

ONNX Runtime's CPU provider has no bfloat16 products, and runs float16 graphs partly in float32. A
GPU multiplies halves, adds in float32 and rounds the result: `emulate_halves` writes just that.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from svit_deploy.errors import InputError
from svit_deploy.graph.edit import copy_model
from svit_deploy.io.npz import reason

FLOAT = TensorProto.FLOAT
HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
MOVES = frozenset(
    {"Cast", "Concat", "Constant", "Expand", "Gather", "Reshape", "ScatterND", "Squeeze",
     "Transpose", "Unsqueeze", "Where"}
)  # fmt: skip
"""Operators that compute nothing: their results are as round as their inputs."""


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the bodies of its functions in their place, all of its values typed.

    Raises:
        InputError: a graph whose values have no types; no export makes such.
    """
    if not model.functions:
        return model
    try:
        inlined = onnx.inliner.inline_local_functions(model)
        return onnx.shape_inference.infer_shapes(inlined, strict_mode=True, data_prop=True)
    except Exception as error:  # of ONNX's native code, of several kinds
        raise InputError(
            f"the graph's functions and types do not fit ({reason(error)})",
            "export the model again",
        ) from None


def emulate_halves(model: onnx.ModelProto, *, exact: bool = False) -> onnx.ModelProto:
    """The graph in float32, every value rounded that was a half.

    Args:
        model: an exported graph, functions inlined.
        exact: round none of them; weights stay what a half can hold.
    """
    emulated = copy_model(model)
    graph = emulated.graph
    halves = _halves(emulated)
    for value in graph.value_info:
        if value.name in halves:
            value.type.tensor_type.elem_type = FLOAT
    for tensor in graph.initializer:
        if tensor.data_type in HALVES:
            values = numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        to = next((a for a in node.attribute if node.op_type == "Cast" and a.i in HALVES), None)
        if to is not None:
            if exact:
                nodes.append(helper.make_node("Identity", node.input, node.output, node.name))
            else:
                nodes += _rounded(node.input[0], node.output[0], to.i)
            continue
        nodes.append(node)
        for position, name in enumerate(node.output):
            if name in halves and node.op_type not in MOVES and not exact:
                node.output[position] = name + ".exact"
                nodes += _rounded(name + ".exact", name, halves[name])
    del graph.node[:]
    graph.node.extend(nodes)
    return emulated


def view_in_float32(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """The graph with the named values in float32, between two casts that lose nothing."""
    viewed = copy_model(model)
    graph, halves = viewed.graph, _halves(viewed)
    wanted = {name: halves[name] for name in names if name in halves}
    for value in graph.value_info:
        if value.name in wanted:
            value.type.tensor_type.elem_type = FLOAT
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in wanted:
                node.input[position] = name + ".half"
        nodes.append(node)
        for position, name in enumerate(node.output):
            if name in wanted:
                node.output[position] = name + ".exact"
                wide, half = name + ".exact", name + ".half"
                nodes.append(helper.make_node("Cast", [wide], [name], wide, to=FLOAT))
                nodes.append(helper.make_node("Cast", [name], [half], half, to=wanted[name]))
    del graph.node[:]
    graph.node.extend(nodes)
    return viewed


def _halves(model: onnx.ModelProto) -> dict[str, int]:
    """Type of each half among the graph's inner values."""
    types = ((value.name, value.type.tensor_type.elem_type) for value in model.graph.value_info)
    return {name: dtype for name, dtype in types if dtype in HALVES}


def _rounded(value: str, name: str, dtype: int) -> list[onnx.NodeProto]:
    """`value` rounded to a half, as the float32 value `name`."""
    half = name + ".half"
    return [
        helper.make_node("Cast", [value], [half], half, to=dtype),
        helper.make_node("Cast", [half], [name], name + ".rounded", to=FLOAT),
    ]
