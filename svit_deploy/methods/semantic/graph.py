"""Blocks of semantic tokens as an ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from svit_deploy.backbones.swin.graph import position_bias
from svit_deploy.backbones.tokens import GraphTokens
from svit_deploy.graph.groups import Groups, attend_in_groups
from svit_deploy.graph.layers import QKV, attend_heads
from svit_deploy.graph.maps import Dim
from svit_deploy.methods.semantic.sampling import Sampling


class SemanticGraph(GraphTokens):
    """Writes blocks of semantic tokens; which block is which, a method says.

    Image tokens are rows `[M * tokens, C]` of M maps, semantic ones `[M * count, C]`, both in
    raster order. A stage has `tokens`, `width`, `heads` and its blocks' names. Layer scales, where
    there are any, are multiplied into the layers before them.

    Attributes:
        sampling: where semantic tokens come from.
        together: maps whose windows at one place are one window; without biases if several.
    """

    sampling: Sampling
    together: int = 1

    def begin(
        self, x: str, stage: Any, block: int, *, shortcut: bool, pooled_keys: bool = True
    ) -> str:
        """The first semantic tokens, from the maxima of cells of image tokens.

        Keys and values are computed once for each image token, whatever windows it is in.

        Args:
            shortcut: whether the maxima are added to what they see.
            pooled_keys: whether they see themselves, too.
        """
        graph, name, width = self.graph, stage.block(block), stage.width
        sampling, count = self.sampling, self.sampling.count
        split = graph.reshape(x, -1, stage.tokens, width)
        with graph.scope("attention"):
            near = graph.op("Gather", split, graph.constant(pooled_places(sampling)), axis=1)
            pooled = graph.reshape(self.placed(self.pooled(near, width), name), -1, width)
            normed, seen = self.normed(pooled, name), self.normed(x, name)
            own = Groups(np.arange(count).reshape(-1, sampling.in_window), count)
            keys = Groups(around_places(sampling), stage.tokens)
            if pooled_keys:
                seen = self.beside(normed, seen, stage)
                places = np.hstack([own.places, count + keys.places])
                keys = Groups(places, count + stage.tokens)
            qkv = self.qkv(normed, seen, name)
            mixed = attend_in_groups(graph, qkv, own, keys, stage, count)
            tokens = self.projected(mixed, name)
            if shortcut:
                tokens = graph.op("Add", pooled, tokens)
            tokens = self.reorder(tokens, np.argsort(raster_order(sampling)), width)
        return self.feed(tokens, name)

    def pooled(self, near: str, width: int) -> str:
        """Tokens of each cell `[M, count, cell, C]` -> `[M, count, C]`, window by window."""
        return self.graph.op("ReduceMax", near, self.graph.constant([2]), keepdims=0)

    def placed(self, pooled: str, name: str) -> str:
        """The maxima `[M, count, C]`, window by window, with what tells their places."""
        return pooled

    def look_around(
        self,
        semantic: str,
        x: str,
        stage: Any,
        block: int,
        learnt: str | None = None,
        *,
        keep_learnt: bool = True,
    ) -> str:
        """Semantic tokens look at themselves and at all image tokens.

        Args:
            learnt: a weight `[1, count, C]` that is added to those that look.
            keep_learnt: whether it stays in what the block begins with.
        """
        graph, width, count = self.graph, stage.width, self.sampling.count
        split = graph.reshape(semantic, -1, count, width)
        both = self.beside(semantic, x, stage)
        query = semantic
        if learnt is not None:
            query = graph.op("Add", split, self.writer.layers.cast_weight(learnt))
            query = graph.reshape(query, -1, width)
        start = query if keep_learnt else semantic
        return self.look(query, both, stage, block, count, count + stage.tokens, start)

    def beside(self, semantic: str, x: str, stage: Any) -> str:
        """Each map's semantic tokens with its image tokens behind them."""
        counts = self.sampling.count, stage.tokens
        parts = (
            self.graph.reshape(rows, -1, count, stage.width)
            for rows, count in zip((semantic, x), counts, strict=True)
        )
        return self.graph.reshape(self.graph.op("Concat", *parts, axis=1), -1, stage.width)

    def look_inside(self, semantic: str, stage: Any, block: int, *, local: bool) -> str:
        """Semantic tokens look at each other, all or those of their window."""
        count, name = self.sampling.count, stage.block(block)
        side = self.sampling.sample * (1 if local else self.sampling.windows)
        table = self.writer.layers.weights.get(f"{name}.attn.relative_position_bias_table")
        bias = None if table is None else self.graph.number(position_bias(table, side))
        if not local:
            return self.look(semantic, semantic, stage, block, count, count, bias=bias)
        order = raster_order(self.sampling, self.together)
        inside = self.together * self.sampling.in_window
        semantic = self.reorder(semantic, order, stage.width)
        found = self.look(semantic, semantic, stage, block, inside, inside, bias=bias)
        return self.reorder(found, np.argsort(order), stage.width)

    def reorder(self, semantic: str, order: np.ndarray, width: int) -> str:
        """Semantic tokens of each map in another order."""
        if len(order) == 1 or (np.diff(order) == 1).all():
            return semantic
        split = self.graph.reshape(semantic, -1, len(order), width)
        moved = self.graph.op("Gather", split, self.graph.constant(order), axis=1)
        return self.graph.reshape(moved, -1, width)

    def look(
        self,
        x: str,
        at: str,
        stage: Any,
        block: int,
        tokens: int,
        keys: int,
        start: str = "",
        bias: str | None = None,
    ) -> str:
        """A block whose `tokens` rows of each group look at `keys` rows of another value.

        Args:
            start: what the block is added to; `x` by default.
        """
        graph, name = self.graph, stage.block(block)
        with graph.scope("attention"):
            normed = self.normed(x, name)
            other = normed if at == x else self.normed(at, name)
            mixed = self.cross(*self.qkv(normed, other, name), stage, tokens, keys, bias)
            x = graph.op("Add", start or x, self.projected(mixed, name))
        return self.feed(x, name)

    def normed(self, rows: str, name: str) -> str:
        """What a block's attention reads."""
        graph, layers = self.graph, self.writer.layers
        return graph.to_precision(layers.layer_norm(rows, f"{name}.norm1", self.config.block_eps))

    def qkv(self, rows: str, others: str, name: str) -> QKV:
        """Queries of normed rows, keys and values of others."""
        part, name = self.writer.layers.part, f"{name}.attn"
        return part(rows, name, "q"), part(others, name, "k"), part(others, name, "v")

    def projected(self, mixed: str, name: str) -> str:
        return self.scaled(mixed, f"{name}.attn.proj", f"{name}.layer_scale_1")

    def scaled(self, x: str, name: str, scale: str) -> str:
        """A linear layer, and the layer scale behind it, if there is one."""
        layers = self.writer.layers
        if scale in layers.weights:
            return str(layers.scaled_linear(x, name, scale))
        return str(layers.linear(x, name))

    def cross(
        self,
        query: str,
        key: str,
        value: str,
        stage: Any,
        tokens: Dim,
        keys: Dim,
        bias: str | None = None,
        windows: Dim = 1,
    ) -> str:
        """Attention of `tokens` to `keys` in each group, rows in and rows out.

        Args:
            bias: `[1, H, tokens, keys]`, or of each of a map's windows
                `[windows, 1 or H, 1 or tokens, keys]`; added to the scores.
            windows: whose biases differ.
        """
        graph, dim = self.graph, stage.width // stage.heads
        groups = (windows,) if windows != 1 else ()
        ahead = len(groups) + 1

        def order(*axes: int) -> tuple[int, ...]:
            return (*range(ahead), *(ahead + axis for axis in axes))

        def heads(rows: str, count: Dim, *axes: int) -> str:
            split = graph.reshape(rows, -1, *groups, count, stage.heads, dim)
            return graph.op("Transpose", split, perm=order(*axes))

        query, value = heads(query, tokens, 1, 0, 2), heads(value, keys, 1, 0, 2)
        mixed = attend_heads(graph, query, heads(key, keys, 1, 2, 0), value, dim, bias)
        mixed = graph.op("Transpose", mixed, perm=order(1, 0, 2))
        return graph.reshape(mixed, -1, stage.width)

    def feed(self, x: str, name: str) -> str:
        """The second half of a block."""
        graph, layers = self.graph, self.writer.layers
        with graph.scope("mlp"):
            normed = graph.to_precision(
                layers.layer_norm(x, f"{name}.norm2", self.config.block_eps)
            )
            hidden = graph.op("Gelu", layers.linear(normed, f"{name}.mlp.fc1"))
            return graph.op(
                "Add", x, self.scaled(hidden, f"{name}.mlp.fc2", f"{name}.layer_scale_2")
            )


def pooled_places(sampling: Sampling) -> np.ndarray:
    """Image tokens whose maximum starts each semantic token `[count, most]`, window by window."""
    raster = np.arange(sampling.rows * sampling.columns).reshape(sampling.rows, sampling.columns)

    def along(length: int) -> list[list[np.ndarray]]:
        """Of each window along an axis its cells."""
        side = length // sampling.windows
        return [
            [window * side + np.arange(*bounds) for bounds in sampling.cells(side)]
            for window in range(sampling.windows)
        ]

    down, across = along(sampling.rows), along(sampling.columns)
    places = [
        raster[np.ix_(row, column)].reshape(-1)
        for rows in down
        for columns in across
        for row in rows
        for column in columns
    ]
    # The maximum of a cell does not change if one of its tokens counts twice.
    most = max(map(len, places))
    return np.stack([np.pad(place, (0, most - len(place)), mode="edge") for place in places])


def around_places(sampling: Sampling) -> np.ndarray:
    """Image tokens of the larger window around each window `[windows, keys]`."""
    raster = np.arange(sampling.rows * sampling.columns).reshape(sampling.rows, sampling.columns)
    height, width = sampling.around
    return np.stack(
        [
            raster[row : row + height, column : column + width].reshape(-1)
            for row in range(0, sampling.rows - height + 1, sampling.stride)
            for column in range(0, sampling.columns - width + 1, sampling.stride)
        ]
    )


def raster_order(sampling: Sampling, maps: int = 1) -> np.ndarray:
    """Places in the raster of the semantic tokens of maps `[maps * count]`, window by window."""
    windows, sample = sampling.windows, sampling.sample
    raster = np.arange(maps * sampling.count).reshape(maps, windows, sample, windows, sample)
    return raster.transpose(1, 3, 0, 2, 4).reshape(-1)
