"""Quantised linear layers in an exported graph: which there could be, and what they are told."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from svit_deploy.graph.builder import ELEMENTS
from svit_deploy.graph.edit import copy_model
from svit_deploy.model.precision import Format

WEIGHT = ".weight"
BLOCK = re.compile(r"\bblocks\.|^stages\.")
"""Of the name of a block's weight: ConvNeXt calls its blocks stages.NUMBER.NUMBER."""
ROUND, WIDEN = "QuantizeLinear", "DequantizeLinear"


def block_layers(model: onnx.ModelProto) -> dict[str, list[str]]:
    """The linear layers of blocks in a float32 graph, each with the values that it is given.

    Heads, gates and whatever else stands outside of blocks is none of them.
    """
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        name = node.input[1] if node.op_type == "Gemm" else ""
        if BLOCK.search(name) and name.endswith(WEIGHT):
            found.setdefault(name.removesuffix(WEIGHT), []).append(node.input[0])
    return found


def deciding_layers(model: onnx.ModelProto, values: Iterable[str]) -> set[str]:
    """The linear layers of blocks whose results some values are made of, no norm between.

    So a method that ranks tokens by attention or by keys tells itself what it ranks them by.
    """
    makers = _makers(model)
    layers = block_layers(model)
    pending, seen, found = list(values), set(), set()
    while pending:
        name = pending.pop()
        node = makers.get(name)
        if node is None or name in seen or node.op_type in ("LayerNormalization", "Shape"):
            continue
        seen.add(name)
        layer = node.input[1].removesuffix(WEIGHT) if node.op_type == "Gemm" else ""
        if layer in layers:
            found.add(layer)
        else:
            pending.extend(node.input)
    return found


def input_steps(model: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    """Of each quantised layer, the step that its inputs are divided by and multiplied with.

    NaN for what is no step: inputs that are not rounded, whose zero is not in the middle, or that
    are rounded in two ways.
    """
    makers = _makers(model)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def step(node: onnx.NodeProto | None, kind: str) -> float:
        if (
            node is None
            or node.op_type != kind
            or any(tensors[name].any() for name in node.input[2:])
        ):
            return math.nan
        return float(tensors[node.input[1]].item())

    found: dict[str, tuple[float, float]] = {}
    for node in model.graph.node:
        if (layer := _layer_of(node, makers)) is None:
            continue
        back = makers.get(node.input[0])
        there = makers.get(back.input[0]) if back is not None else None
        steps = step(there, ROUND), step(back, WIDEN)
        found[layer] = steps if found.get(layer, steps) == steps else (math.nan, math.nan)
    return found


def strays(model: onnx.ModelProto) -> list[str]:
    """Nodes that are given rounded values and are no quantised layer."""
    makers, found = _makers(model), []
    for node in model.graph.node:
        given = [makers[name] for name in node.input if name in makers]
        rounded = [one for one in given if one.op_type == WIDEN and one.input[0] in makers]
        if rounded and _layer_of(node, makers) is None:
            found.append(node.name)
    return found


def with_exact_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph whose quantised layers are given what is there, not rounded."""
    edited = copy_model(model)
    nodes: list[onnx.NodeProto] = []
    given: dict[str, str] = {}
    for node in edited.graph.node:
        if node.op_type == ROUND:
            given[node.output[0]] = node.input[0]
        elif node.op_type == WIDEN and node.input[0] in given:
            value = given[node.input[0]]
            nodes.append(helper.make_node("Identity", [value], node.output, node.name))
        else:
            nodes.append(node)
    del edited.graph.node[:]
    edited.graph.node.extend(nodes)
    return edited


def wrong_layers(model: onnx.ModelProto, form: Format, told: Mapping[str, float]) -> list[str]:
    """Where a graph's quantised layers are not those told, in words.

    Args:
        form: what they multiply.
        told: the step of each one's inputs.
    """
    found, kinds = input_steps(model), _elements(model)
    wrong = [f"{name} multiplies float32" for name in told if name not in found]
    wrong += [f"{name} is quantised" for name in found if name not in told]
    wrong += [f"{name} is given rounded values" for name in strays(model)]
    for name, steps in found.items():
        if kinds[name] != {ELEMENTS[form]}:
            types = " and ".join(onnx.TensorProto.DataType.Name(kind) for kind in kinds[name])
            wrong.append(f"{name} multiplies {types}, not {form.name}")
        elif name in told and any(step != np.float32(told[name]) for step in steps):
            both = " and ".join(f"{step:g}" for step in dict.fromkeys(steps))
            wrong.append(f"{name} has {both}, not {told[name]:g}")
    return wrong


def _elements(model: onnx.ModelProto) -> dict[str, set[int]]:
    """The types of each quantised layer's weights, and of its inputs' zeros."""
    makers = _makers(model)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found: dict[str, set[int]] = {}
    for node in model.graph.node:
        if (layer := _layer_of(node, makers)) is not None:
            back, weight = makers.get(node.input[0]), makers[node.input[1]]
            zeros = back.input[2:] if back is not None and back.op_type == WIDEN else ()
            found.setdefault(layer, set()).update(kinds[n] for n in (weight.input[0], *zeros))
    return found


def _makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in model.graph.node for output in node.output}


def _layer_of(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> str | None:
    """The layer whose quantised weights a node multiplies."""
    weight = makers.get(node.input[1]) if node.op_type == "Gemm" else None
    if weight is None or weight.op_type != WIDEN:
        return None
    return weight.input[0].removesuffix(WEIGHT)
