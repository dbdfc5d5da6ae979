"""Transformer layers as ONNX operators on rows `[R, C]`; what a row is, the caller decides.

Products run in the graph's precision; LayerNorm and softmax, whose sums would lose it, in float32.
In int8 and fp8, linear layers multiply numbers of eight bits: one step for all inputs of a layer,
one for each of its outputs' weights, zero in the middle of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import numpy as np
from onnx.helper import tensor_dtype_to_np_dtype

from svit_deploy.errors import ExportError
from svit_deploy.graph.builder import ELEMENTS, GraphBuilder
from svit_deploy.model.precision import Format

QKV = tuple[str, str, str]
Attend = Callable[[QKV], str]
"""Self-attention within groups of rows: queries, keys and values `[R, C]` -> `[R, C]`."""

MASKED = -1e4
"""Added to the score of a key that must not be seen: its softmax weight is exactly 0 in float32."""


class Layers:
    """Adds a model's layers to a graph.

    Args:
        graph: where the operators go.
        weights: canonical names (`model.keys`) to float32 arrays.
        steps: of a quantised graph, the step of its inputs by layer; others multiply float32.
    """

    def __init__(
        self,
        graph: GraphBuilder,
        weights: Mapping[str, np.ndarray],
        steps: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.graph, self.weights, self.steps = graph, weights, steps
        self._weights: dict[str, str] = {}

    def weight(self, name: str) -> str:
        """A float32 weight."""
        return self.graph.weight(name, self.weights[name])

    def cast_weight(self, name: str, array: np.ndarray | None = None) -> str:
        """A weight in the graph's precision.

        Raises:
            ExportError: a value is beyond its range.
        """
        array = self.weights[name] if array is None else array
        dtype = tensor_dtype_to_np_dtype(self.graph.dtype)
        with np.errstate(over="ignore"):
            narrow = array.astype(dtype)
        if not np.isfinite(narrow.astype(np.float32)).all():
            raise ExportError(
                f"weight {name} reaches {np.abs(array).max():.3g}, which {dtype} cannot hold",
                "export with --precision bf16 or fp32",
            )
        return self.graph.weight(name, narrow)

    def linear(self, x: str, name: str) -> str:
        """`[R, I]` -> `[R, O]` with weights `[O, I]`, in the graph's precision."""
        return self.product(x, name, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def product(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray | None) -> str:
        """`linear` with weights of the caller's, under the layer's name."""
        if name in self.steps:
            return self._quantised_product(x, name, weight, bias)
        arrays = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        given = [self.cast_weight(f"{name}.{kind}", array) for kind, array in arrays.items()]
        return self.graph.op("Gemm", x, *given, transB=1)

    def _quantised_product(
        self, x: str, name: str, weight: np.ndarray, bias: np.ndarray | None
    ) -> str:
        """`product` of numbers of eight bits; the sum with the bias is float32.

        TensorRT takes neither a bias of such numbers nor a zero that is not in the middle.
        """
        graph, form = self.graph, self.graph.form
        assert form is not None, "a graph in float32 has no steps"
        dtype = tensor_dtype_to_np_dtype(ELEMENTS[form])
        # Queries, keys and values round their input each for itself: what shares integers is given
        # ONNX Runtime's slow product on a CPU, of signed by signed ones.
        scale = graph.weight(f"{name}.step", np.float32(self.steps[name]))
        zero = graph.weight(f"{name}.zero", np.zeros((), dtype))
        rounded = graph.op("QuantizeLinear", x, scale, zero)
        inputs = graph.op("DequantizeLinear", rounded, scale, zero)
        if name not in self._weights:
            steps = row_steps(weight, form)
            rows = weight / steps[:, None]
            if np.issubdtype(dtype, np.integer):  # to a float8, NumPy rounds itself
                rows = np.rint(rows)
            scale = graph.weight(f"{name}.weight.step", steps)
            zero = graph.constant(np.zeros(len(steps)), dtype)
            rounded = graph.weight(f"{name}.weight", rows.astype(dtype))
            self._weights[name] = graph.op("DequantizeLinear", rounded, scale, zero, axis=0)
        result = graph.op("Gemm", inputs, self._weights[name], transB=1)
        return (
            result if bias is None else graph.op("Add", result, graph.weight(f"{name}.bias", bias))
        )

    def scaled_linear(self, x: str, name: str, scale: str) -> str:
        """`linear` and the layer scale `[O]` after it, in one product."""
        factor = self.weights[scale]
        weight = self.weights[f"{name}.weight"] * factor[:, None]
        return self.product(x, name, weight, self.weights[f"{name}.bias"] * factor)

    def exact_linear(self, x: str, name: str) -> str:
        """`linear` in float32."""
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.graph.op("Gemm", x, weight, bias, transB=1)

    def difference(self, x: str, name: str, label: str) -> str:
        """The first of two outputs of a linear layer minus the second `[R, 1]`, in float32.

        As one product with the rows' difference, under the name `label`.
        """
        first, second = np.split(self.weights[f"{name}.weight"], 2)
        weight = self.graph.weight(f"{label}.weight", first - second)
        first, second = np.split(self.weights[f"{name}.bias"], 2)
        bias = self.graph.weight(f"{label}.bias", first - second)
        return self.graph.op("Gemm", x, weight, bias, transB=1)

    def qkv(self, x: str, name: str) -> QKV:
        """Queries, keys and values as three products: splitting one would copy all of it."""
        return self.part(x, name, "q"), self.part(x, name, "k"), self.part(x, name, "v")

    def part(self, x: str, name: str, part: str) -> str:
        """Queries ("q"), keys or values of rows, whatever shares a tensor with their weights."""
        arrays = {}
        for kind in ("weight", "bias"):  # some are without a bias
            for parts in ("qkv", "qk", "kv", "q", "k", "v"):
                joined = self.weights.get(f"{name}.{parts}.{kind}")
                if joined is not None and part in parts:
                    arrays[kind] = np.split(joined, len(parts))[parts.index(part)]
        return self.product(x, f"{name}.{part}", arrays["weight"], arrays.get("bias"))

    def layer_norm(self, x: str, name: str, eps: float) -> str:
        """LayerNorm of rows in the graph's precision; the result is float32."""
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        x = self.graph.to_float32(x)
        return self.graph.op("LayerNormalization", x, weight, bias, epsilon=eps, axis=-1)

    def mlp(self, x: str, name: str) -> str:
        """fc1, exact (erf) GELU, fc2."""
        hidden = self.linear(x, f"{name}.fc1")
        return self.linear(self.graph.op("Gelu", hidden), f"{name}.fc2")

    def block(self, x: str, name: str, eps: float, attend: Attend) -> str:
        """A pre-norm transformer block on rows `[R, C]`."""
        return self.feed_forward(self.attend(x, name, eps, attend), name, eps)

    def attend(self, x: str, name: str, eps: float, attend: Attend) -> str:
        """The first half of a block: attention, added to its input."""
        graph = self.graph
        with graph.scope("attention"):
            normed = graph.to_precision(self.layer_norm(x, f"{name}.norm1", eps))
            mixed = attend(self.qkv(normed, f"{name}.attn"))
            return graph.op("Add", x, self.linear(mixed, f"{name}.attn.proj"))

    def feed_forward(self, x: str, name: str, eps: float) -> str:
        """The second half of a block: the MLP, added to its input."""
        with self.graph.scope("mlp"):
            return self.graph.op("Add", x, self.feed(x, name, eps))

    def feed(self, x: str, name: str, eps: float) -> str:
        """What the second half of a block adds."""
        normed = self.graph.to_precision(self.layer_norm(x, f"{name}.norm2", eps))
        return self.mlp(normed, f"{name}.mlp")


def row_steps(weight: np.ndarray, form: Format) -> np.ndarray:
    """The step `[O]` of each output's weights `[O, I]`: their largest is `form.largest` of them."""
    largest = np.abs(weight).max(axis=1)
    return np.where(largest > 0, largest, np.float32(1)) / np.float32(form.largest)


def attention(
    graph: GraphBuilder,
    qkv: Iterable[str],
    tokens: int | str,
    num_heads: int,
    head_dim: int,
    bias: str | None = None,
) -> str:
    """Softmax attention, one group of K rows at a time.

    Args:
        qkv: queries, keys, values, rows `[B * K, C]`.
        tokens: K, a number or an int64 vector.
        bias: `[B, 1, 1, K]`, added to the scores of each key.

    Returns:
        Rows `[B * K, C]`.
    """

    def heads(rows: str, *order: int) -> str:
        split = graph.reshape(rows, -1, tokens, num_heads, head_dim)
        return graph.op("Transpose", split, perm=order)

    query, key, value = qkv
    query, key, value = heads(query, 0, 2, 1, 3), heads(key, 0, 2, 3, 1), heads(value, 0, 2, 1, 3)
    mixed = attend_heads(graph, query, key, value, head_dim, bias)
    mixed = graph.op("Transpose", mixed, perm=(0, 2, 1, 3))
    return graph.reshape(mixed, -1, num_heads * head_dim)


def attend_heads(
    graph: GraphBuilder,
    query: str,
    key: str,
    value: str,
    head_dim: int,
    *biases: str | None,
) -> str:
    """Softmax attention of each head by itself.

    The scale is applied to the queries, before the first product: the pattern that fused
    attention kernels look for.

    Args:
        query, value: `[B, H, K, D]`.
        key: `[B, H, D, K]`.
        biases: of the shape of the scores `[B, H, K, K]`, or 1 along an axis; added to them.

    Returns:
        `[B, H, K, D]`.
    """
    query = graph.op("Mul", query, graph.number(head_dim**-0.5))
    scores = graph.op("MatMul", query, key)
    for bias in biases:
        if bias is not None:
            scores = graph.op("Add", scores, bias)
    weights = graph.to_precision(graph.op("Softmax", graph.to_float32(scores), axis=-1))
    return graph.op("MatMul", weights, value)


def class_attention(
    graph: GraphBuilder, query: str, key: str, tokens: int | str, num_heads: int, head_dim: int
) -> str:
    """The attention of the class token alone, in float32: others are ranked by it.

    Args:
        query, key: rows `[B * K, C]`.
        tokens: K; the first is the class token.

    Returns:
        `[B, H, K]`, each row of sum 1.
    """
    split = graph.reshape(query, -1, tokens, num_heads, head_dim)
    first = graph.op("Gather", split, graph.constant([0]), axis=1)  # [B, 1, H, D]
    first = graph.to_float32(graph.op("Transpose", first, perm=(0, 2, 1, 3)))
    keys = graph.reshape(key, -1, tokens, num_heads, head_dim)
    keys = graph.to_float32(graph.op("Transpose", keys, perm=(0, 2, 3, 1)))
    first = graph.op("Mul", first, graph.constant(head_dim**-0.5, np.float32))
    weights = graph.op("Softmax", graph.op("MatMul", first, keys), axis=-1)
    return graph.op("Squeeze", weights, graph.constant([2]))
