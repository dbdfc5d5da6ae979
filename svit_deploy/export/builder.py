"""A small writer of ONNX graphs: values are their names, operators are method calls.

The graphs of this package are written, not traced: every operator, name and shape is chosen, an
export takes seconds, needs no PyTorch tracing, and the same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


class GraphBuilder:
    """Collects nodes and initializers in order.

    Args:
        name: the graph's name.
        opset: version of the default operator set.
    """

    def __init__(self, name: str, opset: int) -> None:
        self.name, self.opset = name, opset
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._scope: list[str] = []
        self._counts: dict[str, int] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefixes the names of everything added inside, as in `block_3/attention/MatMul`."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, value: str, dtype: int, shape: Sequence[int | str]) -> None:
        """Declares an existing value as an output of the graph."""
        self._outputs.append(helper.make_tensor_value_info(value, dtype, shape))

    def weight(self, name: str, array: np.ndarray) -> str:
        """Adds a named initializer, once; the same name must mean the same array."""
        tensor = numpy_helper.from_array(np.asarray(array, order="C"), name)
        if self._initializers.setdefault(name, tensor) != tensor:
            raise ValueError(f"initializer {name} exists already with other values")
        return name

    def constant(self, value: ArrayLike, dtype: Any = np.int64) -> str:
        """An initializer without a name of its own; equal ones are shared."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = self.weight(name, array)
        return self._constants[key]

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Adds an operator with one output and returns that output."""
        return self.ops(op_type, *inputs, outputs=1, **attributes)[0]

    def ops(self, op_type: str, *inputs: str, outputs: int, **attributes: Any) -> tuple[str, ...]:
        """Adds an operator with several outputs."""
        name = self._unique(op_type)
        values = (name,) if outputs == 1 else tuple(f"{name}:{i}" for i in range(outputs))
        self._nodes.append(helper.make_node(op_type, inputs, values, name=name, **attributes))
        return values

    def rename(self, value: str, name: str) -> str:
        """Gives a value a name that others may rely on; use the returned name from then on."""
        for node in self._nodes:
            for values in (node.input, node.output):
                for i, known in enumerate(values):
                    if known == value:
                        values[i] = name
        return name

    def _unique(self, op_type: str) -> str:
        base = "/".join([*self._scope, op_type])
        count = self._counts[base] = self._counts.get(base, -1) + 1
        return f"{base}_{count}" if count else base

    def model(self) -> onnx.ModelProto:
        """The graph as a model, unused initializers left out, before any check."""
        used = {value for node in self._nodes for value in node.input}
        graph = helper.make_graph(
            self._nodes,
            self.name,
            self._inputs,
            self._outputs,
            [tensor for name, tensor in self._initializers.items() if name in used],
        )
        opset = helper.make_opsetid("", self.opset)
        ir_version = helper.find_min_ir_version_for([opset])
        return helper.make_model(graph, opset_imports=[opset], ir_version=ir_version)

    # Shorthands for what every graph needs.

    def shape(self, value: str, axis: int) -> str:
        """Length of one axis as an int64 vector of one element."""
        return self.op("Shape", value, start=axis, end=axis + 1)

    def reshape(self, value: str, *dims: int | str) -> str:
        """Reshapes; a dimension is a number, -1, or the name of a one-element int64 vector.

        Zero means zero rows, not "copy the dimension" (`allowzero`), unless all are numbers.
        """
        if all(isinstance(dim, int) for dim in dims):
            return self.op("Reshape", value, self.constant(list(dims)))
        parts = [self.vector(dim) for dim in dims]
        target = self.op("Concat", *parts, axis=0)
        return self.op("Reshape", value, target, allowzero=1)

    def vector(self, dim: int | str) -> str:
        """A dimension, a number or already a vector, as an int64 vector of one element."""
        return dim if isinstance(dim, str) else self.constant([dim])

    def range(self, length: str) -> str:
        """0, 1, … length - 1 for a one-element int64 vector `length`."""
        stop = self.op("Squeeze", length)
        return self.op("Range", self.constant(0), stop, self.constant(1))
