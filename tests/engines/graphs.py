"""Small graphs that any engine runs."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper


def model_bytes(nodes, inputs, outputs, weights=(), ir_version=10) -> bytes:
    infos = [
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in side]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "test", *infos, list(weights))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("strange", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version).SerializeToString()


def linear() -> bytes:
    """`x` float32 `[B, 3, 2, 2]` to `sum` `[B, 1]` (the sum of an image) and `positive` bool."""
    ones = helper.make_tensor("ones", TensorProto.FLOAT, [12, 1], np.ones(12, np.float32))
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "ones"], ["sum"]),
        helper.make_node("Greater", ["x", "zero"], ["positive"]),
    ]
    shape = ["B", 3, 2, 2]
    return model_bytes(
        nodes,
        [("x", TensorProto.FLOAT, shape)],
        [("sum", TensorProto.FLOAT, ["B", 1]), ("positive", TensorProto.BOOL, shape)],
        [ones, zero],
    )


def dynamic() -> bytes:
    """`x` float32 `[N]` to the rows that are not zero, int64 `[1, K]`: K depends on the content."""
    nodes = [helper.make_node("NonZero", ["x"], ["rows"])]
    return model_bytes(
        nodes, [("x", TensorProto.FLOAT, ["N"])], [("rows", TensorProto.INT64, [1, None])]
    )


def scaled() -> bytes:
    """`x` float32 `[B, 3, 2, 2]` times the number `scale`, to `y`."""
    shape = ["B", 3, 2, 2]
    return model_bytes(
        [helper.make_node("Mul", ["x", "scale"], ["y"])],
        [("x", TensorProto.FLOAT, shape), ("scale", TensorProto.FLOAT, [])],
        [("y", TensorProto.FLOAT, shape)],
    )


def best(count: int, largest: int) -> bytes:
    """`x` float32 `[B, N]` to its largest or smallest values and their places `[B, count]`."""
    number = helper.make_tensor("number", TensorProto.INT64, [1], [count])
    node = helper.make_node("TopK", ["x", "number"], ["values", "places"], largest=largest)
    shape = ["B", count]
    return model_bytes(
        [node],
        [("x", TensorProto.FLOAT, ["B", "N"])],
        [("values", TensorProto.FLOAT, shape), ("places", TensorProto.INT64, shape)],
        [number],
    )
