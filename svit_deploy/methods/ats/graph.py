"""The ONNX graph of ATS."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from svit_deploy.backbones.tokens import Decided
from svit_deploy.graph.builder import FLOAT, INT64_MAX, GraphBuilder
from svit_deploy.graph.layers import attention
from svit_deploy.graph.packed import Packed, TokenGrid, key_bias, pack
from svit_deploy.graph.ranking import top_k
from svit_deploy.graph.rows import gather_rows, scatter_rows, true_positions
from svit_deploy.graph.tokens import TINY, attend_to_all, share_of
from svit_deploy.methods.ats.settings import FAR
from svit_deploy.methods.removal import RemovingGraph
from svit_deploy.model.config import TokenMode
from svit_deploy.names import decision_name, margin_name, threshold_name


class AtsGraph(RemovingGraph):
    """Rows are those of the tokens still there (`dynamic`), or of all tokens (`masked`).

    Attributes:
        alive: `[B, S]` bool, the tokens still there; None before the first selection.
        packed: where their rows are, in `dynamic` mode.
    """

    alive: str | None = None
    packed: Packed | None = None

    def __init__(self, writer: Any, rows: str) -> None:
        super().__init__(writer, rows)
        self.sample_share = getattr(self.config.settings, "sample_share", 1.0)

    def block(self, block: int) -> str:
        graph, x = self.graph, self.rows
        if (gate := self.config.gate_of.get(block)) is not None:
            x, self.alive, self.packed = self.sample(x, block, gate, self.alive, self.packed)
            self.decided.append(Decided(self.alive, margin_name(gate)))
            return x
        if self.packed is not None:
            return self.writer.block(x, block, self.packed.attend)
        bias = None if self.alive is None else key_bias(graph, self.alive)
        return self.writer.block(x, block, attend_to_all(graph, self.grid, bias))

    def for_head(self) -> tuple[str, int | str]:
        if self.packed is None:
            return super().for_head()
        return gather_rows(self.graph, self.rows, self.packed.firsts), 1

    def put(self, whole: str, rows: str) -> str:
        if self.packed is not None:
            return scatter_rows(self.graph, whole, self.packed.rows, rows)
        assert self.alive is not None
        return self.graph.op("Where", self.graph.reshape(self.alive, -1, 1), rows, whole)

    def take(self, whole: str) -> str:
        return whole if self.packed is None else gather_rows(self.graph, whole, self.packed.rows)

    @property
    def grid(self) -> TokenGrid:
        return self.writer.grid

    def sample(
        self, x: str, block: int, gate: int, alive: str | None, packed: Packed | None
    ) -> tuple[str, str, Packed | None]:
        """A sampling block; all tokens there are its keys, the tokens that stay its queries."""
        graph, layers, grid, name = self.graph, self.writer.layers, self.grid, f"blocks.{block}"
        self.leave(x)
        if alive is None:
            shape = graph.op("Concat", self.batch(x), graph.vector(grid.num_tokens), axis=0)
            alive = graph.op("Expand", graph.constant([[True]], bool), shape)
            if self.writer.mode is TokenMode.DYNAMIC:
                packed = pack(graph, grid, alive)
        with graph.scope("attention"):
            eps = self.config.block_eps
            normed = graph.to_precision(layers.layer_norm(x, f"{name}.norm1", eps))
            key = layers.part(normed, f"{name}.attn", "k")
            value = layers.part(normed, f"{name}.attn", "v")
            with graph.scope("gate"):
                if packed is None:
                    split = graph.reshape(normed, -1, grid.num_tokens, self.config.embed_dim)
                    first = graph.op("Gather", split, graph.constant(0), axis=1)
                else:
                    first = gather_rows(graph, normed, packed.firsts)
                first = layers.part(first, f"{name}.attn", "q")
                scores = self.significance(first, key, value, alive, packed)
                samples = share_of(graph, self.sample_share, grid.num_tokens, 1)
                most = self.writer.most_tokens
                margin = sampling_margin(graph, scores, alive, graph.vector(samples), most)
                margin = graph.rename(margin, margin_name(gate))
                threshold = np.array(self.config.thresholds[gate], np.float32)
                kept = graph.op("Greater", margin, graph.weight(threshold_name(gate), threshold))
                kept = graph.rename(kept, decision_name(gate))
                kept = graph.op("And", kept, alive)
            if packed is None:
                query = layers.part(normed, f"{name}.attn", "q")
                mixed = attention(
                    graph,
                    (query, key, value),
                    grid.num_tokens,
                    grid.num_heads,
                    grid.head_dim,
                    key_bias(graph, alive),
                )
                survivors = None
            else:
                survivors = pack(graph, grid, kept)
                there = graph.op("Gather", graph.reshape(kept, -1), packed.rows)
                rows = true_positions(graph, there)
                query = layers.part(gather_rows(graph, normed, rows), f"{name}.attn", "q")
                mixed = survivors.attend((query, key, value), keys=packed)
                x = gather_rows(graph, x, rows)
            x = graph.op("Add", x, layers.linear(mixed, f"{name}.attn.proj"))
        x = layers.feed_forward(x, name, eps)
        if survivors is None:  # nothing is left of the others
            x = graph.op("Where", graph.reshape(kept, -1, 1), x, graph.number(0))
        return x, kept, survivors

    def batch(self, x: str) -> str:
        """The batch size, of rows `[B * S, C]`."""
        return self.graph.op("Div", self.graph.shape(x, 0), self.graph.vector(self.grid.num_tokens))

    def significance(
        self, first: str, key: str, value: str, alive: str, packed: Packed | None
    ) -> str:
        """The class token's attention times the length of the values, `[B, S]` float32.

        Args:
            first: the class tokens' queries `[B, C]`.
            key, value: rows of all tokens that are there.
        """
        graph, grid = self.graph, self.grid
        query = graph.to_float32(graph.reshape(first, -1, grid.num_heads, 1, grid.head_dim))
        query = graph.op("Mul", query, graph.constant(grid.head_dim**-0.5, np.float32))
        length = graph.op("ReduceL2", graph.to_float32(value), graph.constant([1]), keepdims=0)
        bias: str | None
        if packed is None:
            split = graph.reshape(key, -1, grid.num_tokens, grid.num_heads, grid.head_dim)
            keys, bias = graph.op("Transpose", split, perm=(0, 2, 3, 1)), key_bias(graph, alive)
        else:
            keys = graph.op("Transpose", packed.split_heads(key), perm=(0, 1, 3, 2))
            bias = packed.bias
        scores = graph.op("MatMul", query, graph.to_float32(keys))  # [B, H, 1, K]
        if bias is not None:
            scores = graph.op("Add", scores, graph.to_float32(bias))
        weights = graph.op("Softmax", scores, axis=-1)
        total = graph.op("ReduceSum", weights, graph.constant([1, 2]), keepdims=0)  # [B, K]
        if packed is None:
            return graph.op("Mul", total, graph.reshape(length, -1, grid.num_tokens))
        total = packed.of_rows(total)
        flat = graph.op("Cast", graph.reshape(alive, -1), to=FLOAT)
        rows = graph.op("Unsqueeze", packed.rows, graph.constant([1]))
        flat = graph.op("ScatterND", flat, rows, graph.op("Mul", total, length))
        return graph.reshape(flat, -1, grid.num_tokens)


def sampling_margin(graph: GraphBuilder, scores: str, alive: str, samples: str, most: int) -> str:
    """Margins `[B, S]` of significances `[B, S]`: +inf for the class token, -inf where not alive.

    The samples, so many as the int64 vector `samples` says, are evenly spaced: the two nearest to
    the middle of a token's reach are found by arithmetic, without comparing all with all tokens.
    """
    op = graph.op

    def number(value: ArrayLike) -> str:
        return graph.constant(value, np.float32)

    def tail(value: str) -> str:
        return graph.slice(value, 1, INT64_MAX)

    alive, scores = tail(alive), tail(scores)  # [B, N]
    scores = op("Where", alive, scores, number(0))
    total = op("ReduceSum", scores, graph.constant([1]), keepdims=1)
    scores = op("Div", scores, op("Max", total, number(TINY)))
    tokens = graph.shape(scores, 1)
    keyed = op("Where", alive, scores, number(np.inf))
    ranked, order = top_k(graph, keyed, tokens, most, largest=False)
    there = op("Less", ranked, number(np.inf))
    ranked = op("Where", there, ranked, number(0))
    cdf = op("CumSum", ranked, graph.constant(1))
    least = op("ReduceMin", cdf, graph.constant([1]), keepdims=1)
    span = op("Sub", op("ReduceMax", cdf, graph.constant([1]), keepdims=1), least)
    cdf = op("Div", op("Sub", cdf, least), op("Max", span, number(TINY)))
    above = op("Where", op("Greater", cdf, number(0)), cdf, number(1))
    start = op("ReduceMin", above, graph.constant([1]), keepdims=1)  # [B, 1], the first sample
    last = op("Cast", op("Sub", samples, graph.constant([1])), to=FLOAT)  # the last one's number
    step = op(
        "Max", op("Div", op("Sub", number(1), start), op("Max", last, number(1))), number(TINY)
    )

    def beside(values: str, before: float, after: float) -> tuple[str, str]:
        """Of each two neighbours a value `[B, N - 1]` -> those left and right of each token."""
        column = graph.slice(cdf, 0, 1)
        ends = [op("Expand", number([[end]]), op("Shape", column)) for end in (before, after)]
        return (
            op("Concat", ends[0], values, axis=1),
            op("Concat", values, ends[1], axis=1),
        )

    def neighbours(value: str) -> tuple[str, str]:
        first = graph.slice(value, 0, -1)
        return first, tail(value)

    low, high = neighbours(cdf)
    _, high_there = neighbours(there)
    half = op("Mul", op("Add", low, high), number(0.5))
    left, right = beside(op("Where", high_there, half, number(FAR)), -FAR, FAR)
    middle = op("Mul", op("Add", left, right), number(0.5))
    index = op("Floor", op("Div", op("Sub", middle, start), step))

    def inside(offset: float) -> str:
        """How far a sample is inside the reach of each token."""
        chosen = op("Max", op("Min", op("Add", index, number(offset)), last), number(0))
        sample = op("Add", start, op("Mul", chosen, step))
        return op("Min", op("Sub", sample, left), op("Sub", right, sample))

    margin = op("Max", inside(0), inside(1))
    lower, higher = neighbours(ranked)
    gap = op("Where", high_there, op("Sub", higher, lower), number(np.inf))
    gap = op("Min", *beside(gap, np.inf, np.inf))
    margin = op("Max", op("Min", margin, gap), op("Neg", gap))
    # An image's last token has nothing to be ranked against.
    alone = op(
        "LessOrEqual", op("ReduceSum", op("Cast", alive, to=FLOAT), graph.constant([1])), number(1)
    )
    margin = op("Where", alone, number(FAR), margin)
    margin = op("Where", there, margin, number(-np.inf))
    margin = op("ScatterElements", margin, order, margin, axis=1)
    first = graph.slice(margin, 0, 1)
    infinity = op("Expand", number([[np.inf]]), op("Shape", first))
    return op("Concat", infinity, margin, axis=1)
