"""The graph writer: names, sharing, shapes with zero."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.graph.builder import FLOAT, INT64, GraphBuilder


def test_names_are_scoped_and_numbered():
    graph = GraphBuilder("g", 20)
    x = graph.input("x", FLOAT, ("n",))
    with graph.scope("block_0"), graph.scope("mlp"):
        first, second = graph.op("Relu", x), graph.op("Relu", x)
    assert (first, second) == ("block_0/mlp/Relu", "block_0/mlp/Relu_1")
    assert graph.op("Relu", x) == "Relu"


def test_equal_constants_are_one_initializer():
    graph = GraphBuilder("g", 20)
    assert graph.constant([1]) == graph.constant([1])
    assert len({graph.constant([1]), graph.constant(1), graph.constant([1], np.float32)}) == 3


def test_a_weight_is_added_once_and_never_changed():
    graph = GraphBuilder("g", 20)
    assert graph.weight("w", np.ones(2)) == graph.weight("w", np.ones(2)) == "w"
    with pytest.raises(ValueError, match="w exists already"):
        graph.weight("w", np.zeros(2))


def test_unused_initializers_are_left_out():
    graph = GraphBuilder("g", 20)
    graph.weight("unused", np.ones(2, np.float32))
    x = graph.input("x", FLOAT, (2,))
    graph.output(graph.op("Add", x, graph.weight("used", np.ones(2, np.float32))), FLOAT, (2,))
    assert [tensor.name for tensor in graph.model().graph.initializer] == ["used"]


def test_rename_reaches_producer_and_consumers():
    graph = GraphBuilder("g", 20)
    x = graph.input("x", FLOAT, ("n",))
    inner = graph.op("Relu", x)
    outer = graph.op("Neg", inner)
    graph.rename(inner, "features")
    graph.output(graph.rename(outer, "y"), FLOAT, ("n",))
    model = graph.model()
    onnx.checker.check_model(model, full_check=True)
    assert [list(node.input) + list(node.output) for node in model.graph.node] == [
        ["x", "features"],
        ["features", "y"],
    ]


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_shape_range_and_reshape_with_any_number_of_rows(rows):
    graph = GraphBuilder("g", 20)
    x = graph.input("x", FLOAT, ("n", 4))
    length = graph.shape(x, 0)
    graph.output(graph.rename(graph.range(length), "positions"), INT64, ("n",))
    graph.output(graph.rename(graph.reshape(x, length, 2, 2), "split"), FLOAT, ("n", 2, 2))
    graph.output(graph.rename(graph.reshape(x, 0, 2, 2), "copied"), FLOAT, ("n", 2, 2))
    model = graph.model()
    onnx.checker.check_model(model, full_check=True)
    array = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    with OnnxRuntimeEngine(model.SerializeToString()) as engine:
        outputs = engine.run({"x": array})
    assert outputs["positions"].tolist() == list(range(rows))
    assert np.array_equal(outputs["split"], array.reshape(rows, 2, 2))
    assert np.array_equal(outputs["copied"], outputs["split"])
