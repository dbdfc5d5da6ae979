"""Feature maps whose size is a number or known only when the graph runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from svit_deploy.graph.builder import BFLOAT16, FLOAT, GraphBuilder
from svit_deploy.graph.layers import Layers

Dim = int | str
"""A length: a number, or the name of an int64 vector of one element."""


def product(graph: GraphBuilder, a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    return graph.op("Mul", graph.vector(a), graph.vector(b))


def total(graph: GraphBuilder, a: Dim, b: int) -> Dim:
    if isinstance(a, int) or not b:
        return a + b if isinstance(a, int) else a
    return graph.op("Add", a, graph.vector(b))


def quotient(graph: GraphBuilder, a: Dim, b: int) -> Dim:
    """a / b, rounded down."""
    return a // b if isinstance(a, int) else graph.op("Div", a, graph.vector(b))


def vector(graph: GraphBuilder, dims: Sequence[Dim]) -> str:
    """Several lengths as one int64 vector."""
    numbers = [dim for dim in dims if isinstance(dim, int)]
    if len(numbers) == len(dims):
        return graph.constant(numbers)
    return graph.op("Concat", *(graph.vector(dim) for dim in dims), axis=0)


@dataclass(frozen=True)
class MapSize:
    """Rows and columns of a feature map, and their product."""

    rows: Dim
    columns: Dim
    cells: Dim


def map_size(graph: GraphBuilder, rows: Dim, columns: Dim) -> MapSize:
    return MapSize(rows, columns, product(graph, rows, columns))


def to_columns(graph: GraphBuilder, rows: str, length: Dim, channels: int) -> str:
    """Token rows `[B * length, C]` -> `[B, C, length]`."""
    tokens = graph.reshape(rows, -1, length, channels)
    return graph.op("Transpose", tokens, perm=(0, 2, 1))


# Of four axes, not of three: ONNX Runtime joins such a transpose with the convolution beside it,
# whose blocks of channels are an order of their own.


def to_map(graph: GraphBuilder, rows: str, size: MapSize, channels: int) -> str:
    """Token rows `[B * cells, C]` -> `[B, C, rows, columns]`."""
    split = graph.reshape(rows, -1, size.rows, size.columns, channels)
    return graph.op("Transpose", split, perm=(0, 3, 1, 2))


def to_rows(graph: GraphBuilder, feature_map: str, channels: int) -> str:
    """`[B, C, rows, columns]` -> token rows `[B * cells, C]`."""
    return graph.reshape(graph.op("Transpose", feature_map, perm=(0, 2, 3, 1)), -1, channels)


def linear_on_columns(
    layers: Layers,
    columns: str,
    name: str,
    weight: np.ndarray,
    bias: np.ndarray,
    exact: bool = False,
) -> str:
    """A linear layer `[B, I, length]` -> `[B, O, length]`, in float32 if `exact`.

    On thousands of tokens ONNX Runtime multiplies a quarter faster with the weight in front, and
    takes rows turned by `to_columns` as they are.

    Args:
        weight, bias: `[O, I]`, `[O]`.
    """
    graph, store = layers.graph, layers.graph.weight if exact else layers.cast_weight
    product = graph.op("MatMul", store(f"{name}.weight", weight), columns)
    return graph.op("Add", product, store(f"{name}.column", bias[:, None]))


def centres(graph: GraphBuilder, size: MapSize) -> str:
    """(x, y) of the cells' centres in [-1, 1], as GridSample counts, row by row `[cells, 2]`."""
    if isinstance(size.rows, int) and isinstance(size.columns, int):
        sides = ((2 * np.arange(n) + 1) / n - 1 for n in (size.columns, size.rows))
        places = np.stack(np.meshgrid(*sides, indexing="xy"), -1)
        return graph.constant(places.reshape(-1, 2), np.float32)

    def along(length: Dim, axis: int) -> str:
        numbers = graph.op("Cast", graph.range(graph.vector(length)), to=FLOAT)
        odd = graph.op("Add", graph.op("Add", numbers, numbers), graph.constant(1, np.float32))
        place = graph.op("Div", odd, graph.op("Cast", graph.vector(length), to=FLOAT))
        place = graph.op("Sub", place, graph.constant(1, np.float32))
        return graph.op("Unsqueeze", place, graph.constant([axis, 2]))

    shape = vector(graph, (size.rows, size.columns, 1))
    x = graph.op("Expand", along(size.columns, 0), shape)
    y = graph.op("Expand", along(size.rows, 1), shape)
    return graph.reshape(graph.op("Concat", x, y, axis=2), -1, 2)


def cubic_matrix(graph: GraphBuilder, native: int, length: Dim) -> str:
    """Weights `[length, native + 4]` of bicubic resizing along one axis.

    Columns are the native cells with two more on either side, which repeat the outermost. Keys'
    kernel with a = -0.75, half-pixel centres: PyTorch's `interpolate`.
    """

    def number(value: float) -> str:
        return graph.constant(value, np.float32)

    wanted = graph.op("Cast", graph.vector(length), to=FLOAT)
    numbers = graph.op("Cast", graph.range(graph.vector(length)), to=FLOAT)
    place = graph.op(
        "Mul", graph.op("Add", numbers, number(0.5)), graph.op("Div", number(native), wanted)
    )
    place = graph.op("Unsqueeze", graph.op("Sub", place, number(0.5)), graph.constant([1]))
    cells = graph.constant([np.arange(-2, native + 2)], np.float32)
    d = graph.op("Abs", graph.op("Sub", place, cells))

    def polynomial(*coefficients: float) -> str:
        value = number(coefficients[0])
        for coefficient in coefficients[1:]:
            value = graph.op("Add", graph.op("Mul", value, d), number(coefficient))
        return value

    a = -0.75
    near = polynomial(a + 2, -(a + 3), 0, 1)
    far = polynomial(a, -5 * a, 8 * a, -4 * a)
    far = graph.op("Where", graph.op("Less", d, number(2)), far, number(0))
    return graph.op("Where", graph.op("Less", d, number(1)), near, far)


def map_op(
    layers: Layers,
    op_type: str,
    x: str,
    weights: Mapping[str, np.ndarray],
    **how: Any,
) -> str:
    """A convolution or a pool of feature maps in the graph's precision.

    In bfloat16, which ONNX lets these operators take from version 22 on only, they compute in
    float32.

    Args:
        weights: names and arrays of the operator's other inputs; none for a pool.
        how: its attributes.
    """
    graph = layers.graph
    if graph.dtype == BFLOAT16:
        given = [graph.weight(name, array) for name, array in weights.items()]
        return graph.to_precision(graph.op(op_type, graph.to_float32(x), *given, **how))
    given = [layers.cast_weight(name, array) for name, array in weights.items()]
    return graph.op(op_type, x, *given, **how)


def conv(
    layers: Layers,
    x: str,
    name: str,
    weight: np.ndarray,
    bias: np.ndarray,
    stride: int = 1,
    groups: int = 1,
) -> str:
    """A convolution that keeps the size, divided by the stride."""
    side = weight.shape[2]
    return map_op(
        layers,
        "Conv",
        x,
        {f"{name}.weight": weight, f"{name}.bias": bias},
        kernel_shape=(side, side),
        strides=(stride, stride),
        pads=(side // 2,) * 4,
        group=groups,
    )
