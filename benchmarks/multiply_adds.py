"""Multiply-adds of a graph as it runs, by the shapes of all its products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from svit_deploy.bench.whole import of_images_alone
from svit_deploy.bundle import Bundle
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.names import INPUT

PRODUCTS = ("Gemm", "MatMul", "Conv", "ConvTranspose")


def multiply_adds(bundle: Bundle, batches: Sequence[np.ndarray]) -> float:
    """Per image, mean over batches of images `[B, 3, H, W]`."""
    model = onnx.ModelProto()
    model.CopyFrom(bundle.load_model())
    products = [node for node in model.graph.node if node.op_type in PRODUCTS]
    names = []
    for number, node in enumerate(products):
        for part, value in (("a", node.input[0]), ("b", node.input[1]), ("y", node.output[0])):
            names.append(f"count_{number}_{part}")
            model.graph.node.append(helper.make_node("Shape", [value], [names[-1]]))
            told = helper.make_tensor_value_info(names[-1], TensorProto.INT64, None)
            model.graph.output.append(told)
    total, images = 0, 0
    graph = OnnxRuntimeEngine(model.SerializeToString())
    with of_images_alone(graph, bundle.task) as engine:
        for batch in batches:
            shapes = engine.run({INPUT: batch}, names)
            total += sum(_product(n, number, shapes) for number, n in enumerate(products))
            images += len(batch)
    return total / images


def _product(node: onnx.NodeProto, number: int, shapes: Mapping[str, np.ndarray]) -> int:
    a, b, y = (shapes[f"count_{number}_{part}"] for part in "aby")
    if node.op_type == "ConvTranspose":  # each input goes to all that its kernel reaches
        return int(np.prod(a)) * int(np.prod(b[1:]))
    # Each result sums over what the two have in common.
    return int(np.prod(y)) * int(np.prod(b[1:]) if node.op_type == "Conv" else a[-1])
