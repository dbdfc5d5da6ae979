"""A copy of an exported graph to put a fault into, and where in the model that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import helper, numpy_helper

from svit_deploy import names
from svit_deploy.bundle import Bundle

GATE_OUTPUTS = (names.KEEP_MASK, names.MARGIN, names.OVERFLOW, names.SOURCE)
HEADS = "heads"
"""All of a detector behind its backbone: `verify` tells no more than that."""


class Graph:
    """A bundle's graph under change. Every change is noted, so that its place is known.

    Attributes:
        manifest: a copy, too.
        stated: the places, where they do not follow from the nodes changed.
        told_only: whether the fault is in what is told, not in what is computed.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.config = bundle, bundle.config
        self.manifest = bundle.manifest | {}
        self.model = bundle.load_model()
        self.stated: set[str] = set()
        self.told_only = False
        self._changed: dict[str, onnx.NodeProto] = {}
        self._made = 0
        graph = self.model.graph
        self._types = {
            value.name: value.type.tensor_type.elem_type
            for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}

    # What there is.

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        return self.model.graph.node

    def node(self, op: str, scope: str = "", number: int = 0) -> onnx.NodeProto:
        """The operator of a type whose name begins with `scope/`, counted in order."""
        prefix = f"{scope}/" if scope else ""
        found = [n for n in self.nodes if n.op_type == op and n.name.startswith(prefix)]
        return found[number]

    def reader(self, value: str, number: int = 0) -> onnx.NodeProto:
        """A node that reads a value."""
        return [node for node in self.nodes if value in node.input][number]

    def producer(self, value: str) -> onnx.NodeProto:
        return next(node for node in self.nodes if value in node.output)

    def producer_inputs(self, value: str) -> list[str]:
        """What a value is computed of, by one node; nothing of inputs and constants."""
        return [name for node in self.nodes if value in node.output for name in node.input]

    def constant(self, name: str) -> np.ndarray | None:
        """A tensor of the file, halves as float32; None for computed values."""
        if name not in self.tensors:
            return None
        array = numpy_helper.to_array(self.tensors[name])
        return array.copy() if array.dtype.kind in "iub" else array.astype(np.float32)

    def constants(self, node: onnx.NodeProto) -> list[int]:
        """The inputs of a node that are tensors of the file."""
        return [i for i, name in enumerate(node.input) if name in self.tensors]

    def attribute(self, node: onnx.NodeProto, name: str) -> Any:
        return helper.get_node_attr_value(node, name)

    # Changes.

    def touch(self, node: onnx.NodeProto) -> None:
        """Notes that the fault is in this node."""
        self._changed[node.name] = node

    def set_input(self, node: onnx.NodeProto, position: int, values: ArrayLike) -> None:
        """Gives one node other constants, of the type and shape of those it has.

        Others that share the tensor keep it.
        """
        old = self.tensors[node.input[position]]
        shape = list(old.dims)
        node.input[position] = self._tensor(np.reshape(values, shape), old.data_type)
        self.touch(node)

    def change_input(
        self, node: onnx.NodeProto, position: int, change: Callable[[np.ndarray], ArrayLike]
    ) -> None:
        values = self.constant(node.input[position])
        assert values is not None, f"input {position} of {node.name} is computed"
        self.set_input(node, position, change(values))

    def change_weight(self, name: str, change: Callable[[np.ndarray], ArrayLike]) -> None:
        """Changes a named weight for every node that reads it."""
        readers = [node for node in self.nodes if name in node.input]
        assert readers, f"nothing reads {name}"
        for node in readers:
            self.change_input(node, list(node.input).index(name), change)

    def set_attribute(self, node: onnx.NodeProto, name: str, value: Any) -> None:
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])
        self.touch(node)

    def rewire(self, node: onnx.NodeProto, position: int, value: str) -> None:
        """Lets a node read another value."""
        node.input[position] = value
        self.touch(node)

    def replace(self, value: str, compute: Callable[[Steps, str], str]) -> None:
        """Everything that reads `value` gets what `compute` makes of it."""
        node = self.producer(value)
        right = f"{value}.right"
        node.output[list(node.output).index(value)] = right
        self._types[right] = self._types[value]
        self._insert(list(self.nodes).index(node) + 1, value, compute, right)

    def replace_input(
        self, node: onnx.NodeProto, position: int, compute: Callable[[Steps, str], str]
    ) -> None:
        """One node alone gets what `compute` makes of its input."""
        self._made += 1
        name = f"{node.name}/fault_{self._made}"
        self._insert(list(self.nodes).index(node), name, compute, node.input[position])
        node.input[position] = name
        self.touch(node)

    def _insert(
        self, place: int, name: str, compute: Callable[[Steps, str], str], value: str
    ) -> None:
        """Puts in the nodes that make `name` of `value`."""
        steps = Steps(self, name)
        made = compute(steps, value)
        steps.nodes.append(helper.make_node("Identity", [made], [name], f"{name}/fault"))
        for offset, node in enumerate(steps.nodes):
            self.model.graph.node.insert(place + offset, node)
        self.touch(self.producer(name))

    def _tensor(self, values: ArrayLike, dtype: int) -> str:
        array = np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(dtype))
        self._made += 1
        tensor = numpy_helper.from_array(np.asarray(array, order="C"), f"fault_{self._made}")
        self.model.graph.initializer.append(tensor)
        self.tensors[tensor.name] = tensor
        return tensor.name

    def type_of(self, value: str) -> int:
        """ONNX element type of a value of the graph as it was."""
        if value in self.tensors:
            return self.tensors[value].data_type
        return self._types[value]

    def finished(self) -> onnx.ModelProto:
        """The graph, new values typed: where halves are emulated, types say which to round."""
        if self._made:
            return onnx.shape_inference.infer_shapes(self.model, data_prop=True)
        return self.model

    # Where the fault is.

    def places(self) -> set[str]:
        """The stages that the changed nodes feed, as `verify` calls them."""
        if self.stated:
            return self.stated
        return set().union(*map(self.places_of, self._changed.values()))

    def places_of(self, node: onnx.NodeProto) -> set[str]:
        """The first stages on the way from a node to the outputs."""
        labels, readers = self._labels(), self._readers()
        found: set[str] = set()
        pending, seen = list(node.output), set(node.output)
        while pending:
            value = pending.pop()
            if value in labels:
                found.add(labels[value])
            elif value in GATE_OUTPUTS:
                found |= self._gates_of(node)
            else:
                following = [o for reader in readers.get(value, ()) for o in reader.output]
                pending += [o for o in following if o not in seen]
                seen.update(following)
        return found

    def _readers(self) -> dict[str, list[onnx.NodeProto]]:
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for value in node.input:
                readers.setdefault(value, []).append(node)
        return readers

    def _labels(self) -> dict[str, str]:
        """Named values, and what the report calls them."""
        labels = {name: name.removesuffix(".out").replace("_", " ") for name in self.bundle.stages}
        for gate in range(self.config.num_gates):
            for name in (names.margin_name, names.decision_name, names.target_name):
                labels[name(gate)] = f"gate {gate}"
        limits = self.bundle.task.limits[self.bundle.precision]
        own = self.bundle.task.stages(limits, True)
        labels |= {stage.name: stage.label for stage in own}
        outputs = {output.name for output in self.model.graph.output}
        labels |= dict.fromkeys(outputs - set(labels) - set(GATE_OUTPUTS), HEADS)
        return labels

    def _gates_of(self, node: onnx.NodeProto) -> set[str]:
        """The gate of a node's block; of a node outside of blocks every gate."""
        block = node.name.split("/")[0].removeprefix("block_")
        gates = range(self.config.num_gates)
        if block.isdigit():
            gates = [g for g in gates if self.config.gate_blocks[g] == int(block)] or gates
        return {f"gate {gate}" for gate in gates}


class Steps:
    """Writes the nodes of a fault, one after the other."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph, self.name = graph, name
        self.nodes: list[onnx.NodeProto] = []

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"{self.name}/{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name, **attributes))
        return name

    def constant(self, values: ArrayLike, dtype: int = onnx.TensorProto.INT64) -> str:
        return self.graph._tensor(values, dtype)

    def number(self, values: ArrayLike, like: str) -> str:
        """Constants of the type of a value."""
        return self.constant(values, self.graph.type_of(like))

    def cast(self, value: str, like: str) -> str:
        return self.op("Cast", value, to=self.graph.type_of(like))

    def image_numbers(self) -> str:
        """0, 1, ... for the images of the batch, `[B]` int64."""
        shape = self.op("Shape", names.INPUT, end=1)
        count = self.op("Squeeze", shape)
        return self.op("Range", self.constant(0), count, self.constant(1))
