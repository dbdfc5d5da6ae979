"""STViT-R's ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from svit_deploy.backbones.swin.graph import SwinGraph, position_bias
from svit_deploy.backbones.swin.settings import SwinStage, places
from svit_deploy.backbones.tokens import GraphTokens
from svit_deploy.graph.layers import attend_heads
from svit_deploy.graph.maps import Dim
from svit_deploy.methods.stvitr.settings import (
    AROUND,
    BN_EPS,
    IN_WINDOW,
    SAMPLE,
    SEMANTIC,
    SIDE,
    STRIDE,
    UNIT,
    WINDOWS,
    side_of,
)


class ConvStemGraph(SwinGraph):
    """A Swin whose patches come from convolutions."""

    def stem(self, images: str, exact: bool) -> str:
        """Two convolutions of stride 2; each batch norm is multiplied into its convolution."""
        x, weights = images, self.layers.weights
        shape = {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}
        for part in (0, 2):
            name = f"patch_embed.proj.{part}"
            deviation = np.sqrt(weights[f"{name}.bn.running_var"] + np.float32(BN_EPS))
            scale = weights[f"{name}.bn.weight"] / deviation
            bias = weights[f"{name}.bn.bias"] - weights[f"{name}.bn.running_mean"] * scale
            weight = weights[f"{name}.c.weight"] * scale[:, None, None, None]
            x = self.graph.op("HardSwish", self.convolve(x, name, weight, bias, exact, **shape))
        return x

    def after_stem(self, rows: str) -> str:
        return rows


class StvitRGraph(GraphTokens):
    """Layer scales are multiplied into the layers before them.

    Attributes:
        image, semantic: what the last block gave of either kind.
    """

    semantic = ""

    def __init__(self, writer: Any, rows: str) -> None:
        super().__init__(writer, rows)
        self.image = rows

    def map(self) -> str:
        return self.image

    def put_map(self, x: str) -> None:
        self.rows = self.image = x

    def step(self, block: int) -> None:
        super().step(block)
        if self.role(block) in (0, 5):
            self.image = self.rows
        else:
            self.semantic = self.rows

    def role(self, block: int) -> int:
        """The block's place in its unit; 0 outside of units."""
        stage, number = places(self.config)[block]
        return number % UNIT if stage.index == 2 else 0

    def block(self, block: int) -> str:
        stage, number = places(self.config)[block]
        role, x, semantic = self.role(block), self.image, self.semantic
        if role == 0:
            return str(self.writer.plain_block(x, block, stage.tokens))
        if role == 5:
            return self.recover(x, semantic, stage, number)
        if role == 1:
            return self.begin(x, stage, number)
        if role == 2:
            return self.look_around(semantic, x, stage, number)
        return self.look_inside(semantic, stage, number, local=role == IN_WINDOW)

    def begin(self, x: str, stage: SwinStage, block: int) -> str:
        """The semantic tokens `[B * 36, C]` out of image tokens `[B * 196, C]`.

        Keys and values are computed once for each image token, whatever windows it is in.
        """
        graph, layers, name, width = self.graph, self.writer.layers, stage.block(block), stage.width
        places, windows = sample_places(), WINDOWS**2
        split = graph.reshape(x, -1, stage.tokens, width)
        with graph.scope("attention"):
            near = graph.op("Gather", split, graph.constant(places.reshape(SEMANTIC, -1)), axis=1)
            pooled = graph.op("ReduceMax", near, graph.constant([2]), keepdims=0)
            if self.config.settings.use_conv_pos:
                pooled = graph.op("Add", pooled, self.position(pooled, f"{name}.conv_pos.proj.0"))
            pooled = graph.reshape(pooled, -1, width)
            normed = graph.to_precision(layers.layer_norm(pooled, f"{name}.norm1", self.writer.eps))
            image = graph.to_precision(layers.layer_norm(x, f"{name}.norm1", self.writer.eps))
            query = layers.linear(normed, f"{name}.attn.q")
            own, others = (self.keys_values(rows, name) for rows in (normed, image))
            joined = []
            for mine, theirs in zip(own, others, strict=True):
                mine = graph.reshape(mine, -1, windows, SAMPLE**2, width)
                theirs = graph.reshape(theirs, -1, stage.tokens, width)
                theirs = graph.op("Gather", theirs, graph.constant(around_places()), axis=1)
                joined.append(graph.op("Concat", mine, theirs, axis=2))
            key, value = joined
            keys = SAMPLE**2 + AROUND**2
            mixed = self.cross(query, key, value, stage, windows, SAMPLE**2, keys)
            tokens = layers.scaled_linear(mixed, f"{name}.attn.proj", f"{name}.layer_scale_1")
            if self.config.settings.shortcut:
                tokens = graph.op("Add", pooled, tokens)
            tokens = self.writer.reorder(tokens, np.argsort(semantic_order()), SEMANTIC, width)
        return self.feed(tokens, name)

    def recover(self, x: str, semantic: str, stage: SwinStage, block: int) -> str:
        """Image tokens look at the semantic ones."""
        return self.look(x, semantic, stage, block, stage.tokens, SEMANTIC)

    def position(self, pooled: str, name: str) -> str:
        """A convolution over each window of `[B, 36, C]`, every channel by itself."""
        graph, writer, weights = self.graph, self.writer, self.writer.layers.weights
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        width = len(weight)
        x = graph.op("Transpose", graph.reshape(pooled, -1, SAMPLE**2, width), perm=(0, 2, 1))
        x = graph.reshape(x, -1, width, SAMPLE, SAMPLE)
        exact = writer.exact_convolutions
        x = writer.convolve(
            graph.to_float32(x) if exact else x,
            name,
            weight,
            bias,
            exact,
            kernel_shape=(3, 3),
            pads=(1, 1, 1, 1),
            group=width,
        )
        x = graph.reshape(graph.to_precision(x) if exact else x, -1, width, SAMPLE**2)
        return graph.reshape(graph.op("Transpose", x, perm=(0, 2, 1)), -1, SEMANTIC, width)

    def look_around(self, semantic: str, x: str, stage: SwinStage, block: int) -> str:
        """Semantic tokens look at themselves and at all image tokens."""
        graph, width = self.graph, stage.width
        both = graph.op(
            "Concat",
            graph.reshape(semantic, -1, SEMANTIC, width),
            graph.reshape(x, -1, stage.tokens, width),
            axis=1,
        )
        if block < UNIT and self.config.settings.use_global:
            learnt = self.writer.layers.cast_weight("layers.2.semantic_token2")
            semantic = graph.op("Add", graph.reshape(semantic, -1, SEMANTIC, width), learnt)
            semantic = graph.reshape(semantic, -1, width)
        tokens = SEMANTIC + stage.tokens
        return self.look(semantic, graph.reshape(both, -1, width), stage, block, SEMANTIC, tokens)

    def look_inside(self, semantic: str, stage: SwinStage, block: int, local: bool) -> str:
        """Semantic tokens look at each other, all or those of their window."""
        if not local:
            return self.look(semantic, semantic, stage, block, SEMANTIC, SEMANTIC)
        order = semantic_order()
        semantic = self.writer.reorder(semantic, order, SEMANTIC, stage.width)
        found = self.look(semantic, semantic, stage, block, SAMPLE**2, SAMPLE**2)
        return self.writer.reorder(found, np.argsort(order), SEMANTIC, stage.width)

    def look(self, x: str, at: str, stage: SwinStage, block: int, tokens: int, keys: int) -> str:
        """A block whose `tokens` rows of each group look at `keys` rows of another value."""
        graph, layers, name = self.graph, self.writer.layers, stage.block(block)
        with graph.scope("attention"):
            normed = graph.to_precision(layers.layer_norm(x, f"{name}.norm1", self.writer.eps))
            other = normed
            if at != x:
                other = graph.to_precision(layers.layer_norm(at, f"{name}.norm1", self.writer.eps))
            query = layers.linear(normed, f"{name}.attn.q")
            key, value = self.keys_values(other, name)
            bias = None
            if self.config.settings.relative_pos and (side := side_of(block)):
                table = layers.weights[f"{name}.attn.relative_position_bias_table"]
                bias = graph.number(position_bias(table, side))
            mixed = self.cross(query, key, value, stage, 1, tokens, keys, bias)
            mixed = layers.scaled_linear(mixed, f"{name}.attn.proj", f"{name}.layer_scale_1")
            x = graph.op("Add", x, mixed)
        return self.feed(x, name)

    def keys_values(self, rows: str, name: str) -> tuple[str, str]:
        """As two products of rows `[R, C]`."""
        layers, found = self.writer.layers, []
        weights = np.split(layers.weights[f"{name}.attn.kv.weight"], 2)
        biases = np.split(layers.weights[f"{name}.attn.kv.bias"], 2)
        for part, weight, bias in zip("kv", weights, biases, strict=True):
            found.append(layers.product(rows, f"{name}.attn.{part}", weight, bias))
        return found[0], found[1]

    def cross(
        self,
        query: str,
        key: str,
        value: str,
        stage: SwinStage,
        windows: Dim,
        tokens: Dim,
        keys: Dim,
        bias: str | None = None,
    ) -> str:
        """Attention of `tokens` to `keys` in each of `windows`, rows in and rows out.

        Args:
            bias: `[1 or windows, 1 or H, 1 or tokens, keys]`, added to the scores.
        """
        graph, dim = self.graph, stage.width // stage.heads

        def heads(rows: str, count: Dim, *order: int) -> str:
            split = graph.reshape(rows, -1, windows, count, stage.heads, dim)
            return graph.op("Transpose", split, perm=(0, 1, *order))

        query, value = heads(query, tokens, 3, 2, 4), heads(value, keys, 3, 2, 4)
        mixed = attend_heads(graph, query, heads(key, keys, 3, 4, 2), value, dim, bias)
        mixed = graph.op("Transpose", mixed, perm=(0, 1, 3, 2, 4))
        return graph.reshape(mixed, -1, stage.width)

    def feed(self, x: str, name: str) -> str:
        """The second half of a block with layer scales."""
        graph, layers = self.graph, self.writer.layers
        with graph.scope("mlp"):
            normed = graph.to_precision(layers.layer_norm(x, f"{name}.norm2", self.writer.eps))
            hidden = graph.op("Gelu", layers.linear(normed, f"{name}.mlp.fc1"))
            change = layers.scaled_linear(hidden, f"{name}.mlp.fc2", f"{name}.layer_scale_2")
            return graph.op("Add", x, change)


def sample_places() -> np.ndarray:
    """Image tokens whose maximum starts each semantic token `[windows, 9, 9]`, window by window."""
    inside = np.arange(SIDE // WINDOWS)
    # Three bins of seven tokens: as adaptive pooling cuts them, three each, two apart.
    bins = np.stack([inside[2 * i : 2 * i + 3] for i in range(SAMPLE)])
    raster = np.arange(SIDE**2).reshape(SIDE, SIDE)
    return np.stack(
        [
            np.stack(
                [
                    raster[np.ix_(row * 7 + bins[i], column * 7 + bins[j])].reshape(-1)
                    for i in range(SAMPLE)
                    for j in range(SAMPLE)
                ]
            )
            for row in range(WINDOWS)
            for column in range(WINDOWS)
        ]
    )


def around_places() -> np.ndarray:
    """Image tokens of the larger window around each window `[windows, 100]`."""
    raster = np.arange(SIDE**2).reshape(SIDE, SIDE)
    starts = range(0, SIDE - AROUND + 1, STRIDE)
    return np.stack(
        [raster[r : r + AROUND, c : c + AROUND].reshape(-1) for r in starts for c in starts]
    )


def semantic_order() -> np.ndarray:
    """Places in the raster of the semantic tokens `[36]`, window by window."""
    raster = np.arange(SEMANTIC).reshape(WINDOWS, SAMPLE, WINDOWS, SAMPLE)
    return raster.transpose(0, 2, 1, 3).reshape(-1)
