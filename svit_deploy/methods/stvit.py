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
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from svit_deploy.config import ModelConfig, TokenMode
from svit_deploy.errors import InputError
from svit_deploy.export.layers import attend_heads
from svit_deploy.export.names import block_name
from svit_deploy.export.tokens import Decided, attend_to_all
from svit_deploy.export.vit import VitGraph
from svit_deploy.methods.keys import Dims, Shape, Tensors
from svit_deploy.methods.method import Method

if TYPE_CHECKING:
    from torch import Tensor

    from svit_deploy.models.presets import Arch
    from svit_deploy.models.reference import Passed, Reference


@dataclass(frozen=True)
class StvitSettings:
    """What defines the model beside DeiT's sizes.

    Attributes:
        semantic: semantic tokens, as the weights tell: 16, 36, 64 or 100 in the paper.
        generate_at: the first of the two blocks, counted from 0, that make them.
    """

    semantic: int
    generate_at: int = 4


@dataclass(frozen=True)
class StvitDims(Dims):
    semantic: int = 0


def cells(length: int, count: int) -> list[np.ndarray]:
    """Places `0 … length - 1` in `count` cells that may overlap, as adaptive pooling cuts them."""
    return [np.arange(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]


class StvitGraph(VitGraph):
    def run(self, x: str) -> tuple[str, Sequence[Decided]]:
        config, graph, count = self.config, self.graph, self.config.settings.semantic
        start, semantic = config.settings.generate_at, ""
        for block in range(config.depth):
            with graph.scope(f"block_{block}"):
                if block < start:
                    out = x = self.block(x, block, attend_to_all(graph, self.grid))
                elif block == start:
                    out = self.generate(x, block)
                elif block == start + 1:
                    learnt = self.layers.narrow_weight("semantic_tokens")
                    tokens = graph.reshape(semantic, -1, count, config.embed_dim)
                    tokens = graph.op("Add", tokens, learnt)
                    tokens = graph.reshape(tokens, -1, config.embed_dim)
                    out = graph.op("Add", tokens, self.look(tokens, semantic, x, block))
                    out = self.layers.feed_forward(out, f"blocks.{block}", config.block_eps)
                else:
                    out = self.block(semantic, block, attend_to_all(graph, self.grid_of(count)))
            out = graph.rename(out, block_name(block))
            x, semantic = (out, "") if block < start else (x, out)
        return self.classify_mean(semantic, count, config.embed_dim), []

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
        return self.layers.feed_forward(tokens, f"blocks.{block}", self.config.block_eps)

    def look(self, tokens: str, semantic: str, x: str, block: int) -> str:
        """Attention of K tokens to K semantic and all image tokens, and its projection."""
        config, graph, layers, grid = self.config, self.graph, self.layers, self.grid
        count, name = config.settings.semantic, f"blocks.{block}"

        def heads(rows: str, length: int, *order: int) -> str:
            split = graph.reshape(rows, -1, length, grid.num_heads, grid.head_dim)
            return graph.op("Transpose", split, perm=order)

        with graph.scope("attention"):
            normed = {
                rows: graph.narrow(layers.layer_norm(rows, f"{name}.norm1", config.block_eps))
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


class Stvit(Method):
    name, title = "stvit", "STViT"
    modes = (TokenMode.STATIC,)
    settings = StvitSettings
    sizes = ("semantic",)
    graph = StvitGraph
    class_token = False

    def matches(self, keys: Collection[str]) -> bool:
        return "semantic_tokens" in keys

    def infer(self, tensors: Tensors) -> StvitDims:
        semantic = tensors.shape("semantic_tokens", 3)[1]
        return StvitDims(**vars(super().infer(tensors)), semantic=semantic)

    def sketch(self, arch: Arch) -> StvitDims:
        return StvitDims(**vars(super().sketch(arch)), semantic=arch.settings["semantic"])

    def told_by_weights(self, dims: Dims) -> dict[str, Any]:
        assert isinstance(dims, StvitDims)
        return {"semantic": dims.semantic}

    def shapes(self, dims: Dims) -> dict[str, Shape]:
        assert isinstance(dims, StvitDims)
        shapes = super().shapes(dims)
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

    def forward(self, reference: Reference, images: Tensor) -> Passed:
        import torch
        from torch.nn.functional import adaptive_max_pool2d

        from svit_deploy.models.reference import Passed

        config, start = reference.config, reference.config.settings.generate_at
        x = reference.embed(images)
        maps = [x]
        for block in range(start):
            x = reference.block(x, block)
            maps.append(x)
        side = math.isqrt(config.settings.semantic)
        image = x.transpose(1, 2).unflatten(2, config.grid)
        s = adaptive_max_pool2d(image, side).flatten(2).transpose(1, 2)
        s = reference.feed_forward(look(reference, s, torch.cat([s, x], dim=1), start), start)
        maps.append(s)
        t = s + reference.weights["semantic_tokens"]
        t = t + look(reference, t, torch.cat([s, x], dim=1), start + 1)
        s = reference.feed_forward(t, start + 1)
        maps.append(s)
        for block in range(start + 2, config.depth):
            s = reference.block(s, block)
            maps.append(s)
        return Passed(reference.classify_mean(s), maps)


def look(reference: Reference, x: Tensor, at: Tensor, block: int) -> Tensor:
    """Attention of tokens `[B, T, C]` to others `[B, K, C]`, and its projection."""
    from torch.nn.functional import scaled_dot_product_attention

    name, heads = f"blocks.{block}", reference.config.num_heads
    x, at = (reference.norm(v, f"{name}.norm1", reference.block_eps) for v in (x, at))
    query = reference.linear(x, f"{name}.attn.qkv").chunk(3, dim=2)[0]
    _, key, value = reference.linear(at, f"{name}.attn.qkv").chunk(3, dim=2)
    split = (v.unflatten(2, (heads, -1)).transpose(1, 2) for v in (query, key, value))
    mixed = scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
    return reference.linear(mixed, f"{name}.attn.proj")
