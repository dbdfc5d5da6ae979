"""What of a graph stays in float32 where OpenVINO computes in half precision.

Asked for a half, OpenVINO rounds every value, those that decide included: margins near a threshold
end on its other side, infinite ones are 65504 in float16, places beyond 256 are other places in
bfloat16. So such operators are marked, and OpenVINO computes them as the graph says.
"""

from __future__ import annotations

import re
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from svit_deploy.names import EMBEDDING

MARKS = (
    {"name": "DisablePrecisionConversion", "value": "dynamic:f16,bf16;f32:f16,bf16"},
    {"name": "precise"},  # the same for OpenVINO before 2026.2
)
SIDES = ("Parameter", "Result")
OF_NO_VALUE = ("ShapeOf", "Result")
"""Users of a value that do not ask how exact it is."""
_DECIDES = re.compile(r"gate_\d+\.(margin|decision|target)")
_STAGE = re.compile(rf".+\.out|{EMBEDDING}|pyramid|stride_\d+")


def keep_float32(openvino: ModuleType, core: Any, model: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """A model with what is to stay in float32 marked.

    Args:
        core: an `openvino.Core`.
        model: an `openvino.Model` of an exported graph; it is changed.

    Returns:
        The marked model, and what to feed it beside its inputs, by the names of its parameters.
    """
    fed: dict[str, np.ndarray] = {}
    names = {op.get_friendly_name() for op in what_stays(model)}
    # OpenVINO puts other operators in the place of some, and these are not marked.
    for op in model.get_ordered_ops():
        if op.get_friendly_name() not in names:
            continue
        if op.get_type_name() == "MVN":
            _count_axis_otherwise(openvino, op)
        elif op.get_type_name() == "Negative":
            _replace(op, openvino.opset13.multiply(op.input_value(0), np.float32(-1)))
        elif op.get_type_name() == "MatMul":
            op = _without_transposes(openvino, op)
            weights = op.input_value(1).get_node()
            if weights.get_type_name() == "Constant":  # nor would it be with constant weights
                name = f"{op.get_friendly_name()}.weights"
                fed[name] = np.array(weights.data)
                parameter = openvino.opset13.parameter(fed[name].shape, fed[name].dtype)
                parameter.set_friendly_name(name)
                op.input(1).replace_source_output(parameter.output(0))
                model.add_parameters([parameter])
    model.validate_nodes_and_infer_types()
    return _mark(openvino, core, model, names), fed


def what_stays(model: Any) -> list[Any]:
    """The operators that stay in float32, with their constants.

    What serves nothing but margins, decisions and, behind the last stage, results: gates, scores
    of tokens, heads. And what is computed of those or of shapes alone: ranks, places, masks.
    """
    ops, marked = model.get_ordered_ops(), set[str]()

    def is_marked(op: Any) -> bool:
        return op.get_name() in marked

    for op in reversed(ops):
        names = set(_names(op))
        if any(map(_DECIDES.fullmatch, names)):
            marked.add(op.get_name())
        elif op.get_type_name() not in SIDES and not any(map(_STAGE.fullmatch, names)):
            users = (user for user in _users(op) if user.get_type_name() not in OF_NO_VALUE)
            if all(map(is_marked, users)):
                marked.add(op.get_name())
    for op in ops:
        if op.get_type_name() not in ("Constant", "Parameter"):
            floats = [value.get_node() for value in op.input_values() if _is_float(value)]
            if all(n.get_type_name() == "Constant" or is_marked(n) for n in floats):
                marked.add(op.get_name())
    for op in ops:
        if op.get_type_name() == "Constant" and all(map(is_marked, _users(op))):
            marked.add(op.get_name())
    return [op for op in ops if is_marked(op)]


def _names(op: Any) -> Iterator[str]:
    """What the ONNX graph calls an operator's results."""
    for output in op.outputs():
        yield from output.get_names()


def _users(op: Any) -> Iterator[Any]:
    for output in op.outputs():
        for target in output.get_target_inputs():
            yield target.get_node()


def _is_float(value: Any) -> bool:
    return bool(value.get_element_type().is_real())


def _without_transposes(openvino: ModuleType, op: Any) -> Any:
    """A product that itself reads its operands the other way round, where they are transposed."""
    values, turned, told = op.input_values(), [], op.get_attributes()
    for position, side in enumerate("ab"):
        node, turn = values[position].get_node(), bool(told[f"transpose_{side}"])
        if node.get_type_name() == "Transpose" and _swaps_last(node.input_value(1).get_node()):
            values[position], turn = node.input_value(0), not turn
        turned.append(turn)
    return _replace(op, openvino.opset13.matmul(*values, *turned))


def _count_axis_otherwise(openvino: ModuleType, norm: Any) -> None:
    """Counts the one axis of a norm from the other end, which changes nothing but that.

    OpenVINO computes equal operators once: a block's norm of the same rows would take the place
    of a gate's, and is not marked.
    """
    axis = int(norm.input_value(1).get_node().input_value(0).get_node().data)
    rank = norm.get_output_partial_shape(0).rank.get_length()
    other = openvino.opset13.constant(np.array([axis - rank if axis >= 0 else axis + rank]))
    norm.input(1).replace_source_output(other.output(0))


def _swaps_last(order: Any) -> bool:
    """Whether a constant is the order of axes in which only the last two change places."""
    if order.get_type_name() != "Constant":
        return False
    axes = list(order.data)
    return axes == [*range(len(axes) - 2), len(axes) - 1, len(axes) - 2]


def _replace(op: Any, other: Any) -> Any:
    """Puts an operator in another's place, and returns it."""
    other.set_friendly_name(op.get_friendly_name())
    for before, after in zip(op.outputs(), other.outputs(), strict=True):
        after.set_names(before.get_names())
        before.replace(after)
    return other


def _mark(openvino: ModuleType, core: Any, model: Any, names: set[str]) -> Any:
    """The model with marks at operators of these names.

    Python can only read such marks; OpenVINO's own file format can have them.
    """
    with tempfile.TemporaryDirectory() as folder:
        text, weights = Path(folder, "model.xml"), Path(folder, "model.bin")
        openvino.serialize(model, text, weights)
        tree = ET.parse(text)
        content = np.fromfile(weights, np.uint8)
    for layer in tree.iter("layer"):
        if layer.get("name") in names:
            told = layer.find("rt_info")
            if told is None:
                told = ET.Element("rt_info")
                layer.insert(0 if layer.find("data") is None else 1, told)
            for mark in MARKS:
                ET.SubElement(told, "attribute", {"version": "0", **mark})
    return core.read_model(ET.tostring(tree.getroot()), openvino.Tensor(content))
