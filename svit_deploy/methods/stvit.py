"""STViT on DeiT: after a few blocks, some semantic tokens take the place of all image tokens.

Chang et al., "Making Vision Transformers Efficient from A Token Sparsification View", CVPR 2023,
where it is described; the authors published code and weights of STViT-R alone. The layout of keys
is ours: DeiT's without `cls_token`, `pos_embed` of the patches alone, and `semantic_tokens`
`[1, K, C]`, K a square. What the paper leaves open is done as in STViT-R's released code.

The block `generate_at` turns image tokens X into semantic tokens S by attention, from the maxima
P of X in a grid of K cells: S = attention(P to [P, X]), without a residual, then its MLP. The next
block adds the learnt `semantic_tokens` and looks at both again: T = S + semantic_tokens,
S = T + attention(T to [S, X]), then its MLP. All later blocks run on S alone; the head reads the
mean of S after the final norm. Nothing is selected.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from svit_deploy.backbones.tokens import GraphTokens, ReferenceTokens
from svit_deploy.errors import InputError
from svit_deploy.graph.layers import attend_heads
from svit_deploy.methods.method import Method
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig, TokenMode
from svit_deploy.model.keys import Shape, Tensors

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StvitSettings:
    """What defines the model beside DeiT's sizes.

    Attributes:
        semantic: semantic tokens, as the weights tell: 16, 36, 64 or 100 in the paper.
        generate_at: the first of the two blocks, counted from 0, that make them.
    """

    semantic: int
    generate_at: int = 4


def cells(length: int, count: int) -> list[np.ndarray]:
    """Places `0 … length - 1` in `count` cells that may overlap, as adaptive pooling cuts them."""
    return [np.arange(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]


class StvitGraph(GraphTokens):
    image = ""

    def block(self, block: int) -> str:
        config, graph, layers = self.config, self.graph, self.writer.layers
        count, start = config.settings.semantic, config.settings.generate_at
        if block == start:
            self.image, self.count = self.rows, count
            return self.generate(self.image, block)
        if block == start + 1:
            learnt = layers.cast_weight("semantic_tokens")
            tokens = graph.reshape(self.rows, -1, count, config.embed_dim)
            tokens = graph.op("Add", tokens, learnt)
            tokens = graph.reshape(tokens, -1, config.embed_dim)
            out = graph.op("Add", tokens, self.look(tokens, self.rows, self.image, block))
            return layers.feed_forward(out, f"blocks.{block}", config.block_eps)
        return super().block(block)

    def generate(self, x: str, block: int) -> str:
        """The first semantic tokens `[B * K, C]`."""
        graph, width, (rows, columns) = self.graph, self.config.embed_dim, self.config.grid
        side = math.isqrt(self.config.settings.semantic)
        raster = np.arange(rows * columns).reshape(rows, columns)
        places = [
            raster[np.ix_(row, column)].reshape(-1)
            for row in cells(rows, side)
            for column in cells(columns, side)
        ]
        # The maximum of a cell does not change if one of its tokens counts twice.
        most = max(map(len, places))
        table = np.stack([np.pad(place, (0, most - len(place)), mode="edge") for place in places])
        with graph.scope("pool"):
            split = graph.reshape(x, -1, rows * columns, width)
            near = graph.op("Gather", split, graph.constant(table), axis=1)  # [B, K, cell, C]
            pooled = graph.op("ReduceMax", near, graph.constant([2]), keepdims=0)
            pooled = graph.reshape(pooled, -1, width)
        tokens = self.look(pooled, pooled, x, block)
        return self.writer.layers.feed_forward(tokens, f"blocks.{block}", self.config.block_eps)

    def look(self, tokens: str, semantic: str, x: str, block: int) -> str:
        """Attention of K tokens to K semantic and all image tokens, and its projection."""
        config, graph, layers, grid = self.config, self.graph, self.writer.layers, self.writer.grid
        count, name = config.settings.semantic, f"blocks.{block}"

        def heads(rows: str, length: int, *order: int) -> str:
            split = graph.reshape(rows, -1, length, grid.num_heads, grid.head_dim)
            return graph.op("Transpose", split, perm=order)

        with graph.scope("attention"):
            normed = {
                rows: graph.to_precision(layers.layer_norm(rows, f"{name}.norm1", config.block_eps))
                for rows in dict.fromkeys((tokens, semantic, x))
            }
            query = heads(layers.part(normed[tokens], f"{name}.attn", "q"), count, 0, 2, 1, 3)
            joined = []
            for part, order in (("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3))):
                own = layers.part(normed[semantic], f"{name}.attn", part)
                others = layers.part(normed[x], f"{name}.attn", part)
                lengths = (count, grid.num_tokens)
                both = [heads(r, n, *order) for r, n in zip((own, others), lengths, strict=True)]
                joined.append(graph.op("Concat", *both, axis=3 if part == "k" else 2))
            mixed = attend_heads(graph, query, joined[0], joined[1], grid.head_dim, None)
            mixed = graph.op("Transpose", mixed, perm=(0, 2, 1, 3))
            mixed = graph.reshape(mixed, -1, config.embed_dim)
            return layers.linear(mixed, f"{name}.attn.proj")


class StvitReference(ReferenceTokens):
    def __init__(self, backbone: Any, rows: Tensor) -> None:
        super().__init__(backbone, rows)
        self.image = rows

    def step(self, block: int) -> None:
        import torch
        from torch.nn.functional import adaptive_max_pool2d

        config, backbone = self.config, self.backbone
        start = config.settings.generate_at
        if block == start:
            self.image = x = self.rows
            side = math.isqrt(config.settings.semantic)
            image = x.transpose(1, 2).unflatten(2, config.grid)
            s = adaptive_max_pool2d(image, side).flatten(2).transpose(1, 2)
            s = self.look(s, torch.cat([s, x], dim=1), block)
            self.rows = backbone.feed_forward(s, block)
        elif block == start + 1:
            t = self.rows + backbone.weights["semantic_tokens"]
            t = t + self.look(t, torch.cat([self.rows, self.image], dim=1), block)
            self.rows = backbone.feed_forward(t, block)
        else:
            super().step(block)

    def look(self, x: Tensor, at: Tensor, block: int) -> Tensor:
        """Attention of tokens `[B, T, C]` to others `[B, K, C]`, and its projection."""
        from torch.nn.functional import scaled_dot_product_attention

        backbone, name, heads = self.backbone, f"blocks.{block}", self.config.num_heads
        x, at = (backbone.norm(v, f"{name}.norm1", backbone.block_eps) for v in (x, at))
        query = backbone.linear(x, f"{name}.attn.qkv").chunk(3, dim=2)[0]
        _, key, value = backbone.linear(at, f"{name}.attn.qkv").chunk(3, dim=2)
        query, key, value = (
            v.unflatten(2, (heads, -1)).transpose(1, 2) for v in (query, key, value)
        )
        scale = backbone.scale(query.shape[3])
        mixed = scaled_dot_product_attention(query, key, value, scale=scale)
        mixed = mixed.transpose(1, 2).flatten(2)
        found: Tensor = backbone.linear(mixed, f"{name}.attn.proj")
        return found


class Stvit(Method):
    title = "STViT"
    modes = (TokenMode.STATIC,)
    settings = StvitSettings
    told_by_weights = ("semantic",)
    required = ("semantic",)

    def matches(self, keys: Collection[str]) -> bool:
        return "semantic_tokens" in keys

    def infer(self, tensors: Tensors, dims: Any) -> Any:
        semantic = tensors.shape("semantic_tokens", 3)[1]
        return replace(dims, num_patches=dims.num_patches + 1, semantic=semantic)

    def dims_from_arch(self, dims: Any, arch: Arch) -> Any:
        return replace(dims, semantic=arch.settings["semantic"])

    def shapes(self, shapes: dict[str, Shape], dims: Any) -> dict[str, Shape]:
        del shapes["cls_token"]
        shapes["pos_embed"] = (1, dims.num_patches, dims.embed_dim)
        return shapes | {"semantic_tokens": (1, dims.semantic, dims.embed_dim)}

    def check(self, config: ModelConfig) -> None:
        count, start = config.settings.semantic, config.settings.generate_at
        if count < 1 or math.isqrt(count) ** 2 != count or math.isqrt(count) > min(config.grid):
            raise InputError(
                f"{count} semantic tokens are no square grid on {config.grid[0]}x{config.grid[1]} "
                "patches",
                "give another checkpoint, or a larger image",
            )
        if not 0 <= start <= config.depth - 2:
            raise InputError(
                f"generate_at is {start}, and the model has {config.depth} blocks",
                f"give a block from 0 to {config.depth - 2}",
            )

    def graph(self, writer: Any, rows: str) -> StvitGraph:
        return StvitGraph(writer, rows)

    def reference(self, backbone: Any, x: Tensor) -> StvitReference:
        return StvitReference(backbone, x)
