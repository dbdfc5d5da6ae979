"""A small writer of ONNX graphs: values are their names, operators are method calls.

The graphs of this package are written, not traced: every operator, name and shape is chosen, an
export takes seconds, needs no PyTorch tracing, and the same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from svit_deploy.model.precision import FORMATS, FP8, INT8

FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL
INT32, INT64 = TensorProto.INT32, TensorProto.INT64
INT64_MAX = int(np.iinfo(np.int64).max)
FLOAT16, BFLOAT16 = TensorProto.FLOAT16, TensorProto.BFLOAT16
PRECISIONS = {"fp32": FLOAT, "fp16": FLOAT16, "bf16": BFLOAT16} | dict.fromkeys(FORMATS, FLOAT)
"""Type of what is not said to be float32; of int8 and fp8, of all but linear layers in blocks."""
ELEMENTS = {INT8: TensorProto.INT8, FP8: TensorProto.FLOAT8E4M3FN}
"""Type of what quantised layers multiply."""
FUNCTIONS_DOMAIN = "trt.plugins"
"""Where TensorRT, and ONNX Runtime's TensorRT provider, look for plugins."""
PLUGIN = {"plugin_namespace": "svit", "plugin_version": "1"}
Body = Callable[..., tuple[str, ...]]


class GraphBuilder:
    """Collects nodes and initializers in order.

    Args:
        name: the graph's name.
        opset: version of the default operator set.
        precision: one of `PRECISIONS`.
        plugins: write functions as nodes of their own, each with its body beside it.

    Attributes:
        dtype: of what is not said to be float32.
        form: what its quantised layers multiply; None of a graph without any.
    """

    def __init__(
        self, name: str, opset: int, precision: str = "fp32", plugins: bool = False
    ) -> None:
        self.name, self.opset, self.plugins = name, opset, plugins
        self.dtype, self.form = PRECISIONS[precision], FORMATS.get(precision)
        self._functions: dict[str, onnx.FunctionProto] = {}
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

    def number(self, value: ArrayLike) -> str:
        """A constant in the graph's precision."""
        return self.constant(value, helper.tensor_dtype_to_np_dtype(self.dtype))

    def to_precision(self, value: str) -> str:
        """float32 -> the graph's precision."""
        return value if self.dtype == FLOAT else self.op("Cast", value, to=self.dtype)

    def to_float32(self, value: str) -> str:
        """The graph's precision -> float32."""
        return value if self.dtype == FLOAT else self.op("Cast", value, to=FLOAT)

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Adds an operator with one output and returns that output."""
        return self.ops(op_type, *inputs, outputs=1, **attributes)[0]

    def ops(self, op_type: str, *inputs: str, outputs: int, **attributes: Any) -> tuple[str, ...]:
        """Adds an operator with several outputs."""
        name = self._unique(op_type)
        values = (name,) if outputs == 1 else tuple(f"{name}:{i}" for i in range(outputs))
        self._nodes.append(helper.make_node(op_type, inputs, values, name=name, **attributes))
        return values

    def function(
        self, name: str, body: Body, *inputs: str, outputs: int = 1, **attributes: Any
    ) -> tuple[str, ...]:
        """Adds what `body` writes: in place, or as one node that a plugin may stand in for.

        Args:
            name: of the node's type; the same name must mean the same body.
            body: takes a builder and the inputs, returns the outputs. It may use neither named
                weights nor the names of other values.
            attributes: for the plugin; the body does without.
        """
        if not self.plugins:
            return body(self, *inputs)
        attributes |= PLUGIN
        if name not in self._functions:
            function = self._write_function(name, body, len(inputs), list(attributes))
            self._functions[name] = function
        return self.ops(name, *inputs, outputs=outputs, domain=FUNCTIONS_DOMAIN, **attributes)

    def _write_function(
        self, name: str, body: Body, inputs: int, attributes: list[str]
    ) -> onnx.FunctionProto:
        inner = GraphBuilder(name, self.opset)
        formal = [f"in_{i}" for i in range(inputs)]
        results = body(inner, *formal)
        constants = [
            helper.make_node("Constant", [], [tensor_name], name=tensor_name, value=tensor)
            for tensor_name, tensor in inner._initializers.items()
        ]
        opset = helper.make_opsetid("", self.opset)
        nodes = [*constants, *inner._nodes]
        return helper.make_function(
            FUNCTIONS_DOMAIN, name, formal, results, nodes, [opset], attributes=attributes
        )

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
        """The graph as a model, what no output needs left out, before any check."""
        used = {output.name for output in self._outputs}
        nodes: list[onnx.NodeProto] = []
        for node in reversed(self._nodes):
            if used.intersection(node.output):
                used.update(node.input)
                nodes.append(node)
        graph = helper.make_graph(
            nodes[::-1],
            self.name,
            self._inputs,
            self._outputs,
            [tensor for name, tensor in self._initializers.items() if name in used],
        )
        opset = helper.make_opsetid("", self.opset)
        ir_version = helper.find_min_ir_version_for([opset])
        opsets = [opset]
        if self._functions:
            opsets.append(helper.make_opsetid(FUNCTIONS_DOMAIN, 1))
        return helper.make_model(
            graph,
            functions=list(self._functions.values()),
            opset_imports=opsets,
            ir_version=ir_version,
        )

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

    def slice(self, value: str, start: int, stop: int, axis: int = 1) -> str:
        """Places `start … stop - 1` along an axis; negative ones count from its end."""
        return self.op("Slice", value, *map(self.constant, ([start], [stop], [axis])))

    def range(self, length: str) -> str:
        """0, 1, … length - 1 for a one-element int64 vector `length`."""
        stop = self.op("Squeeze", length)
        return self.op("Range", self.constant(0), stop, self.constant(1))
