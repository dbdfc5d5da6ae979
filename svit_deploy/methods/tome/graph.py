"""ToMe's ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from svit_deploy.backbones.tokens import Decided, GraphTokens
from svit_deploy.graph.builder import FLOAT, INT64_MAX
from svit_deploy.graph.layers import QKV, attention
from svit_deploy.graph.ranking import top_k
from svit_deploy.graph.rows import flat_rows, gather_rows
from svit_deploy.graph.tokens import attend_to_all, merge_tokens, unit_rows
from svit_deploy.methods.tome.settings import Merge, merges
from svit_deploy.names import INPUT, decision_name, margin_name, target_name


class TomeGraph(GraphTokens):
    """In a block that merges, the tokens in front of its MLP are fewer than those it began with.

    Attributes:
        sizes: `[B, count, 1]` float32, patches that each token stands for; None before a merge.
    """

    sizes: str | None = None

    def __init__(self, writer: Any, rows: str) -> None:
        super().__init__(writer, rows)
        self.layers, self.origins = writer.layers, Origins(self)

    def block(self, block: int) -> str:
        graph, config, tokens = self.graph, self.config, self.count
        assert isinstance(tokens, int)
        bias = None
        if self.sizes is not None and config.settings.prop_attn:
            shares = graph.op("Log", graph.reshape(self.sizes, -1, 1, 1, tokens))
            bias = graph.to_precision(shares)
        if (gate := config.gate_of.get(block)) is None:
            attend = attend_to_all(graph, self.writer.grid_of(tokens), bias)
            return self.writer.block(self.rows, block, attend)
        merge = merges(config)[gate]
        x, metric = self.attend(self.rows, block, tokens, bias)
        with graph.scope("merge"):
            sources, kept, target = self.match(metric, merge, gate)
            self.decided.append(self.origins.merge(merge, gate, sources, kept, target))
            x, self.sizes = self.merge(x, self.sizes, merge, sources, kept, target)
        self.count = tokens - merge.pairs
        return self.layers.feed_forward(x, f"blocks.{block}", config.block_eps)

    def attend(self, x: str, block: int, tokens: int, bias: str | None) -> tuple[str, str]:
        """The block's first half, and the mean of each token's keys `[B, tokens, D]`, length 1."""
        graph, grid = self.graph, self.writer.grid_of(tokens)
        metrics = []

        def attend(qkv: QKV) -> str:
            keys = graph.reshape(graph.to_float32(qkv[1]), -1, grid.num_heads, grid.head_dim)
            mean = graph.op("ReduceMean", keys, graph.constant([1]), keepdims=0)
            metrics.append(graph.reshape(unit_rows(graph, mean), -1, tokens, grid.head_dim))
            return attention(graph, qkv, tokens, grid.num_heads, grid.head_dim, bias)

        x = self.layers.attend(x, f"blocks.{block}", self.config.block_eps, attend)
        return x, metrics[0]

    def match(self, metric: str, merge: Merge, gate: int) -> tuple[str, str, str]:
        """Which of A merge `[B, r]`, which stay `[B, A - r]` ascending, into which of B `[B, r]`.

        The margin of a token of A is how unlike its nearest of B it is: the least ones merge.
        """
        graph, distilled = self.graph, self.config.distilled
        a, b = (self.alternate(metric, start, merge.tokens) for start in (0, 1))
        unlike = graph.op("MatMul", graph.op("Neg", a), graph.op("Transpose", b, perm=(0, 2, 1)))
        infinity = graph.constant(np.inf, np.float32)
        if distilled:  # nothing merges into the distillation token
            second = graph.constant([[[column == 0 for column in range(merge.b)]]], bool)
            unlike = graph.op("Where", second, infinity, unlike)
        nearest, index = graph.ops("TopK", unlike, graph.constant([1]), outputs=2, largest=0)
        first = graph.constant([[row == 0 for row in range(merge.a)]], bool)
        margin = graph.op(
            "Where", first, infinity, graph.op("Squeeze", nearest, graph.constant([2]))
        )
        margin = graph.rename(margin, margin_name(gate))
        sources = top_k(graph, margin, merge.pairs, merge.pairs, largest=False)[1]
        sources = graph.rename(sources, decision_name(gate))
        index = graph.op("Squeeze", index, graph.constant([2]))
        target = graph.op("GatherElements", index, sources, axis=1)
        target = graph.rename(target, target_name(gate))
        # The others in their order: each place in its own, the sources' beyond all.
        shape = graph.op("Concat", graph.shape(sources, 0), graph.constant([1]), axis=0)
        places = graph.constant([list(range(merge.a))], np.float32)
        zeros = graph.op("Mul", graph.op("Cast", sources, to=FLOAT), graph.constant(0, np.float32))
        beyond = graph.op("Add", zeros, graph.constant(merge.a, np.float32))
        places = graph.op(
            "ScatterElements", graph.op("Expand", places, shape), sources, beyond, axis=1
        )
        stay = merge.a - merge.pairs
        kept = top_k(graph, places, stay, stay, largest=False)[1]
        return sources, kept, target

    def alternate(self, value: str, start: int, tokens: int) -> str:
        """Every second of `[B, tokens, …]`."""
        bounds = ([start], [tokens], [1], [2])
        return self.graph.op("Slice", value, *map(self.graph.constant, bounds))

    def merge(
        self, x: str, sizes: str | None, merge: Merge, sources: str, kept: str, target: str
    ) -> tuple[str, str]:
        """Rows `[B * tokens, C]` and sizes after the merge: what stays of A, then B."""
        graph, width = self.graph, self.config.embed_dim
        two, one = graph.constant(2), graph.constant(1, np.float32)

        def rows(places: str) -> str:
            picked = gather_rows(graph, x, flat_rows(graph, places, merge.tokens))
            return graph.op("Reshape", picked, self.shape(places, width))

        shape = graph.op("Concat", graph.shape(sources, 0), graph.constant([1]), axis=0)
        odd = graph.op("Expand", graph.constant([list(range(1, merge.tokens, 2))]), shape)
        gone, stay = graph.op("Mul", sources, two), graph.op("Mul", kept, two)
        if sizes is None:
            own = one
            stay_sizes = graph.op("Expand", one, self.shape(kept, 1))
            gone_sizes = graph.op("Expand", one, graph.op("Shape", sources))
        else:
            flat = graph.reshape(sizes, -1, merge.tokens)
            own = self.alternate(sizes, 1, merge.tokens)  # [B, b, 1]
            gone_sizes = graph.op("GatherElements", flat, gone, axis=1)
            stay_sizes = graph.op("GatherElements", flat, stay, axis=1)
            stay_sizes = graph.op("Unsqueeze", stay_sizes, graph.constant([2]))
        b, b_sizes = merge_tokens(graph, rows(odd), rows(gone), own, gone_sizes, target, merge.b)
        merged = self.ordered(rows(stay), b)
        return graph.reshape(merged, -1, width), self.ordered(stay_sizes, b_sizes)

    def shape(self, places: str, width: int) -> str:
        """`[B, K, width]` of places `[B, K]`."""
        shape = self.graph.op("Shape", places)
        return self.graph.op("Concat", shape, self.graph.constant([width]), axis=0)

    def ordered(self, a: str, b: str) -> str:
        """What stays of A, then B; a distillation token, the first of B, comes second."""
        graph = self.graph
        if not self.config.distilled:
            return graph.op("Concat", a, b, axis=1)
        bounds = (0, 1), (1, INT64_MAX)
        parts = [graph.slice(v, *places) for places in bounds for v in (a, b)]
        return graph.op("Concat", *parts, axis=1)


class Origins:
    """Tracks which token each patch is part of, for the graph's outputs alone.

    A token is known by the patch that it began as; one that others merge into keeps its name.
    """

    def __init__(self, tokens: TomeGraph) -> None:
        self.tokens, self.graph = tokens, tokens.graph
        self.width = tokens.config.num_tokens
        self.batch = self.graph.shape(INPUT, 0)
        self.names = self.places = self.fill(np.arange(self.width))

    def fill(self, row: np.ndarray) -> str:
        """A row for each image."""
        shape = self.graph.op("Concat", self.batch, self.graph.constant([1]), axis=0)
        return self.graph.op("Expand", self.graph.constant(row[None], row.dtype), shape)

    def merge(self, merge: Merge, gate: int, sources: str, kept: str, target: str) -> Decided:
        graph, stay = self.graph, merge.a - merge.pairs
        two, odd = graph.constant(2), self.fill(np.arange(1, merge.tokens, 2))
        margin = graph.op(
            "ScatterElements",
            self.fill(np.full(merge.tokens, np.inf, np.float32)),
            self.fill(np.arange(0, merge.tokens, 2)),
            margin_name(gate),
            axis=1,
        )
        gone = self.fill(np.full(self.width, -np.inf, np.float32))
        margin = graph.op("ScatterElements", gone, self.names, margin, axis=1)
        # Where each place goes: those that stay first, then B, and the sources with them.
        order = self.tokens.ordered(
            self.fill(np.arange(stay)), self.fill(np.arange(stay, stay + merge.b))
        )
        back = graph.op(
            "ScatterElements", order, order, self.fill(np.arange(stay + merge.b)), axis=1
        )
        moved = graph.op(
            "GatherElements", back, graph.op("Add", target, graph.constant(stay)), axis=1
        )
        a_moved = graph.slice(back, 0, stay)
        b_moved = graph.slice(back, stay, stay + merge.b)
        kept_places = graph.op("Mul", kept, two)
        table = self.fill(np.zeros(merge.tokens, np.int64))
        for places, new in (
            (kept_places, a_moved),
            (odd, b_moved),
            (graph.op("Mul", sources, two), moved),
        ):
            table = graph.op("ScatterElements", table, places, new, axis=1)
        self.places = graph.op("GatherElements", table, self.places, axis=1)
        self.names = self.tokens.ordered(
            *(
                graph.op("GatherElements", self.names, places, axis=1)
                for places in (kept_places, odd)
            )
        )
        source = graph.op("GatherElements", self.names, self.places, axis=1)
        keep = graph.op("Equal", source, graph.constant([list(range(self.width))]))
        return Decided(keep, margin, source)
