"""Bundles whose graph is another one than was exported, with a manifest that vouches for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.fuzz.kinds.manifests import command, pick
from tests.fuzz.sound import Sound, accept_changes
from tests.fuzz.values import NUMBERS, TEXTS, odd_bytes

WHOLE = [0, 1, -1, 2, 3, 1000, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63)]
LOCATIONS = ["../secret", "{root}/secret", "weights.bin", "manifest.json", "/dev/zero", "", "\x00",
             "a/../../secret", "file:../secret", "*/_ORT_MEM_ADDR_/*", "w" * 5000]  # fmt: skip

OPERATORS = ["Add", "Sub", "Mul", "Reshape", "Gather", "Softmax", "NonZero", "Identity",
             "Transpose", "RandomUniformLike", "TopK", "Concat", "Split", "MatMul", "If", "Loop",
             "Cast"]  # fmt: skip


def make(rng: random.Random, folder: Path, sound: Sound) -> Sequence[Any]:
    family, task, mode = pick(rng)
    bundle = sound.copy(sound.bundle(family, task, mode), folder)
    path = bundle / "model.onnx"
    model = onnx.load(path)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        rng.choice(CHANGES)(rng, model)
    content = model.SerializeToString()
    if rng.random() < 0.1:
        content = odd_bytes(rng, content)
    path.write_bytes(content.replace(b"{root}", str(folder.parent).encode()))
    accept_changes(bundle)
    if rng.random() < 0.2:
        return ["inspect", "bundle/model.onnx"]
    return command(rng, sound, bundle.name, family, task)


def _text(rng: random.Random) -> str:
    return rng.choice(TEXTS).encode("utf-8", "replace").decode()


def _values(model: onnx.ModelProto) -> list[str]:
    names = [name for node in model.graph.node for name in (*node.input, *node.output) if name]
    return names or ["x"]


def _rename(rng: random.Random, model: onnx.ModelProto) -> None:
    """An input or output under another name, consistently or not."""
    ends = [*model.graph.output, *model.graph.input]
    if not ends:
        return
    value = rng.choice(ends)
    old, new = value.name, rng.choice([_text(rng), rng.choice(_values(model)), value.name + "_0"])
    value.name = new
    if rng.random() < 0.7:
        for node in model.graph.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == old:
                        names[place] = new


def _ends(rng: random.Random, model: onnx.ModelProto) -> None:
    """An input or output is missing, twice there, new, or of another type or shape."""
    values = rng.choice([model.graph.input, model.graph.output])
    change = rng.choice(["gone", "twice", "new", "type", "shape", "shape", "kind"])
    if change == "new" or not values:
        values.append(
            helper.make_tensor_value_info(rng.choice(_values(model)), TensorProto.FLOAT, None)
        )
        return
    place = rng.randrange(len(values))
    value, tensor = values[place], values[place].type.tensor_type
    if change == "gone":
        del values[place]
    elif change == "twice":
        values.append(value)
    elif change == "type":
        tensor.elem_type = rng.choice([0, 1, 6, 7, 8, 9, 10, 11, 14, 16, 17, 23, 99, 2**31 - 1])
    elif change == "kind":
        value.type.CopyFrom(helper.make_sequence_type_proto(value.type))
    elif tensor.shape.dim:
        dim = rng.choice(tensor.shape.dim)
        if rng.random() < 0.5:
            dim.dim_value = rng.choice(WHOLE)
        else:
            dim.dim_param = _text(rng)
        if rng.random() < 0.3:
            del tensor.shape.dim[0]


def _nodes(rng: random.Random, model: onnx.ModelProto) -> None:
    """A node is missing, twice there, elsewhere, another operator, or connected to others."""
    nodes = model.graph.node
    if not nodes:
        return
    place = rng.randrange(len(nodes))
    node = nodes[place]
    change = rng.choice(
        ["gone", "twice", "moved", "operator", "domain", "input", "input", "output"]
    )
    if change == "gone":
        del nodes[place]
    elif change == "twice":
        nodes.append(node)
    elif change == "moved":
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        del nodes[place]
        nodes.append(copy)
    elif change == "operator":
        node.op_type = rng.choice([*OPERATORS, _text(rng)])
    elif change == "domain":
        node.domain = rng.choice(["com.microsoft", "ai.onnx.ml", "acme", _text(rng)])
    else:
        names = node.input if change == "input" else node.output
        if names:
            names[rng.randrange(len(names))] = rng.choice([*_values(model)[:50], "", _text(rng)])


def _attributes(rng: random.Random, model: onnx.ModelProto) -> None:
    """An attribute is missing, new, of another type or value."""
    nodes = [node for node in model.graph.node if node.attribute] or list(model.graph.node)
    if not nodes:
        return
    node = rng.choice(nodes)
    value: Any = rng.choice(
        [
            rng.choice(WHOLE),
            rng.choice([0.5, 1e30, float("nan")]),
            _text(rng),
            [rng.choice(WHOLE)] * 3,
            [0.5],
        ]
    )
    name = rng.choice([a.name for a in node.attribute] or ["axis"])
    if rng.random() < 0.2:
        name = _text(rng)
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    if rng.random() < 0.8:
        node.attribute.append(helper.make_attribute(name, value))


def _weights(rng: random.Random, model: onnx.ModelProto) -> None:
    """An initializer of another shape, type, value or place."""
    if not model.graph.initializer:
        return
    tensor = rng.choice(model.graph.initializer)
    if rng.random() < 0.3:  # those that verify and bench know by name
        named = [t for t in model.graph.initializer if t.name.startswith("gate_")]
        tensor = rng.choice(named or [tensor])
    change = rng.choice(["dims", "dims", "type", "data", "file", "file", "name", "values", "gone"])
    if change == "dims":
        dims = list(tensor.dims)
        del tensor.dims[:]
        tensor.dims.extend(
            rng.choice([[], [*dims, 1], dims[::-1], [rng.choice(WHOLE)], [2**31, 2**33]])
        )
    elif change == "type":
        tensor.data_type = rng.choice([0, 1, 7, 8, 9, 10, 11, 16, 99])
    elif change == "data":
        tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
    elif change == "file":
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=rng.choice(LOCATIONS))
        if rng.random() < 0.5:
            tensor.external_data.add(key="length", value=str(rng.choice(WHOLE)))
    elif change == "name":
        tensor.name = rng.choice([_text(rng), *_values(model)[:20]])
    elif change == "gone":
        model.graph.initializer.remove(tensor)
    else:
        _odd_values(rng, tensor)


def _odd_values(rng: random.Random, tensor: onnx.TensorProto) -> None:
    try:
        array = numpy_helper.to_array(tensor)
    except Exception:  # changed before
        return
    if array.dtype.kind == "f":
        array = np.full_like(array, rng.choice([np.nan, np.inf, -np.inf, 0, 3e38, -3e38]))
    else:
        array = np.full_like(array, rng.choice([0, 1, 2, 100]))
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _about(rng: random.Random, model: onnx.ModelProto) -> None:
    """What a model says of itself."""
    change = rng.choice(["ir", "opset", "opset", "props", "props", "producer", "function", "doc"])
    if change == "ir":
        model.ir_version = rng.choice([0, 1, 3, 12, 99, 2**62])
    elif change == "opset":
        if model.opset_import and rng.random() < 0.6:
            model.opset_import[0].version = rng.choice([0, 1, 9, 13, 17, 25, 99, 2**62])
        else:
            model.opset_import.append(helper.make_opsetid(_text(rng), 1))
    elif change == "props":
        if model.metadata_props and rng.random() < 0.7:
            entry = rng.choice(model.metadata_props)
            entry.value = rng.choice(
                [_text(rng), str(rng.choice(NUMBERS)), "[" * 5000, '[{"gate": 1}]']
            )
        else:
            model.metadata_props.add(key="svit_deploy." + _text(rng), value=_text(rng))
    elif change == "producer":
        model.producer_name = _text(rng)
    elif change == "doc":
        model.doc_string = "x" * 10**6
    elif model.graph.node:
        node = rng.choice(model.graph.node)
        body = [helper.make_node(node.op_type, ["a"], ["b"])]
        name, opsets = rng.choice([node.op_type, _text(rng)]), [helper.make_opsetid("", 20)]
        model.functions.append(helper.make_function("acme", name, ["a"], ["b"], body, opsets))


CHANGES: list[Callable[[random.Random, onnx.ModelProto], None]] = [
    _rename, _ends, _nodes, _nodes, _attributes, _weights, _weights, _about,
]  # fmt: skip
