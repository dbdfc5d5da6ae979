"""Copies of an exported graph that run a "what if": forced masks, other thresholds, probes.

They are derived from the very file that ships, so what is learnt about them holds for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from svit_deploy.errors import InputError

FED = ".fed"


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def add_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Makes existing values outputs of the graph, beside those it has.

    Raises:
        InputError: the graph has no such value.
    """
    edited = copy_model(model)
    known = {info.name: info for info in edited.graph.value_info}
    present = {info.name for info in edited.graph.output}
    for name in names:
        if name in present:
            continue
        if name not in known:
            raise InputError(
                f"the graph has no value named {name!r}",
                "use the file as svit-deploy exported it; simplifiers rename values",
            )
        edited.graph.output.append(known[name])
    return edited


def set_scalars(model: onnx.ModelProto, values: Mapping[str, float]) -> onnx.ModelProto:
    """Replaces the values of named float32 scalar initializers.

    Raises:
        InputError: the graph has no such initializer.
    """
    edited = copy_model(model)
    tensors = {tensor.name: tensor for tensor in edited.graph.initializer}
    for name, value in values.items():
        if name not in tensors:
            raise InputError(*_no_scalar(name))
        tensors[name].CopyFrom(numpy_helper.from_array(np.array(value, np.float32), name))
    return edited


def feed_scalars(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Turns float32 scalar initializers into inputs of their names.

    Raises:
        InputError: the graph has no such initializer.
    """
    edited = copy_model(model)
    tensors = {tensor.name: tensor for tensor in edited.graph.initializer}
    for name in names:
        if name not in tensors:
            raise InputError(*_no_scalar(name))
        edited.graph.initializer.remove(tensors[name])
        edited.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ()))
    return edited


def read_scalar(model: onnx.ModelProto, name: str) -> float:
    """The value of a named scalar initializer.

    Raises:
        InputError: the graph has no such initializer, or it is no number.
    """
    for tensor in model.graph.initializer:
        if tensor.name == name:
            try:
                return float(numpy_helper.to_array(tensor).item())
            except Exception:  # what a hostile tensor makes of to_array is anyone's guess
                raise InputError(
                    f"the initializer {name!r} is no scalar or is damaged", "export the model again"
                ) from None
    raise InputError(*_no_scalar(name))


def _no_scalar(name: str) -> tuple[str, str]:
    return (
        f"the graph has no initializer named {name!r}",
        "use the file as svit-deploy exported it; optimisers fold thresholds away",
    )


def force_values(
    model: onnx.ModelProto,
    shapes: Mapping[str, tuple[int | str, ...]],
    types: Mapping[str, int] = MappingProxyType({}),
) -> onnx.ModelProto:
    """Turns computed values into inputs of the graph.

    Args:
        shapes: value name to the input's shape.
        types: ONNX element types of those that are not boolean.

    Raises:
        InputError: no node computes such a value.
    """
    edited = copy_model(model)
    produced = {output: node for node in edited.graph.node for output in node.output}
    for name, shape in shapes.items():
        if name not in produced:
            raise InputError(
                f"the graph has no value named {name!r}",
                "use the file as svit-deploy exported it; simplifiers rename values",
            )
        edited.graph.node.remove(produced[name])
        dtype = types.get(name, TensorProto.BOOL)
        edited.graph.input.append(helper.make_tensor_value_info(name, dtype, shape))
    return edited


def feed_values(
    model: onnx.ModelProto, shapes: Mapping[str, tuple[int | str, ...]]
) -> onnx.ModelProto:
    """Feeds all that reads a float32 value from a new input, named after it with `FED`.

    The value as it is computed becomes an output. So each part of a graph can be run on given
    values, in one run and whatever the parts before it compute.

    Args:
        shapes: value name to the input's shape.

    Raises:
        InputError: the graph has no such value.
    """
    edited = add_outputs(model, shapes)
    for name, shape in shapes.items():
        edited.graph.input.append(
            helper.make_tensor_value_info(name + FED, TensorProto.FLOAT, shape)
        )
    for node in edited.graph.node:
        for position, name in enumerate(node.input):
            if name in shapes:
                node.input[position] = name + FED
    return edited
