"""STViT-R: most of Swin's third stage runs on a few semantic tokens, then all tokens return.

Chang et al., "Making Vision Transformers Efficient from A Token Sparsification View", CVPR 2023;
the numbers are those of changsn/STViT-R @ b4a27a07.

The third stage is made of units of six blocks: a Swin block; the semantic tokens, three by three
out of each window, made by attention to a larger window around it; four more blocks of which the
first two also look at the image tokens or stay inside a window; and the image tokens looking at
the semantic ones. Nothing is selected: the graph is static and no decision is to be compared.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from svit_deploy.config import ModelConfig, TokenMode
from svit_deploy.errors import InputError
from svit_deploy.export.layers import attend_heads
from svit_deploy.export.names import block_name
from svit_deploy.export.tokens import Decided
from svit_deploy.methods.keys import Dims, Shape, Tensors, linear, norm
from svit_deploy.methods.swin import (
    Stage,
    Swin,
    SwinDims,
    SwinGraph,
    SwinSettings,
    mean_head,
    merge,
    stages,
    swin_block,
)

if TYPE_CHECKING:
    from torch import Tensor

    from svit_deploy.models.presets import Arch
    from svit_deploy.models.reference import Passed, Reference

UNIT = 6
"""Blocks of a unit."""
SAMPLE = 3
"""Semantic tokens along the side of a window."""
AROUND, STRIDE = 10, 4
"""Side and distance of the larger windows that semantic tokens are made from."""
SIDE, WINDOWS = 14, 2
"""Image tokens and windows along the side of the third stage."""
SEMANTIC = (SAMPLE * WINDOWS) ** 2
BN_EPS = 1e-5


@dataclass(frozen=True)
class StvitRSettings(SwinSettings):
    """Swin's, and one more.

    Attributes:
        shortcut: whether semantic tokens start from the pooled image tokens, as no published model.
    """

    shortcut: bool = False


@dataclass(frozen=True)
class StvitRDims(SwinDims):
    """`has_global`: whether the first unit has semantic tokens of its own (`semantic_token2`)."""

    has_global: bool = False


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


class StvitRGraph(SwinGraph):
    """Layer scales are multiplied into the layers before them."""

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

    def run(self, x: str) -> tuple[str, Sequence[Decided]]:
        graph, number, semantic = self.graph, 0, ""
        for stage in stages(self.config):
            for block in range(stage.depth):
                with graph.scope(f"block_{number}"):
                    if stage.index and not block:
                        x = self.merge_patches(x, stage)
                    role = block % UNIT if stage.index == 2 else 0
                    if role == 0:
                        x = out = self.swin_block(x, stage, block)
                    elif role == 5:
                        x = out = self.look(x, semantic, stage, block, stage.tokens, SEMANTIC)
                    elif role == 1:
                        semantic = out = self.begin(x, stage, block)
                    elif role == 2:
                        semantic = out = self.look_around(semantic, x, stage, block)
                    else:
                        semantic = out = self.look_inside(semantic, stage, block, local=role == 3)
                out = graph.rename(out, block_name(number))
                x, semantic = (out, semantic) if role in (0, 5) else (x, out)
                number += 1
        return self.classify_mean(x, stage), []

    def begin(self, x: str, stage: Stage, block: int) -> str:
        """The semantic tokens `[B * 36, C]` out of image tokens `[B * 196, C]`.

        Keys and values are computed once for each image token, whatever windows it is in.
        """
        graph, layers, name, width = self.graph, self.layers, stage.block(block), stage.width
        places, windows = sample_places(), WINDOWS**2
        split = graph.reshape(x, -1, stage.tokens, width)
        with graph.scope("attention"):
            near = graph.op("Gather", split, graph.constant(places.reshape(SEMANTIC, -1)), axis=1)
            pooled = graph.op("ReduceMax", near, graph.constant([2]), keepdims=0)
            pooled = graph.reshape(pooled, -1, width)
            normed = graph.narrow(layers.layer_norm(pooled, f"{name}.norm1", self.eps))
            image = graph.narrow(layers.layer_norm(x, f"{name}.norm1", self.eps))
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
            tokens = self.scaled(mixed, f"{name}.attn.proj", f"{name}.layer_scale_1")
            if self.config.settings.shortcut:
                tokens = graph.op("Add", pooled, tokens)
            tokens = self.reorder(tokens, np.argsort(semantic_order()), SEMANTIC, width)
        return self.feed(tokens, name)

    def look_around(self, semantic: str, x: str, stage: Stage, block: int) -> str:
        """Semantic tokens look at themselves and at all image tokens."""
        graph, width = self.graph, stage.width
        both = graph.op(
            "Concat",
            graph.reshape(semantic, -1, SEMANTIC, width),
            graph.reshape(x, -1, stage.tokens, width),
            axis=1,
        )
        if block < UNIT and "layers.2.semantic_token2" in self.layers.weights:
            learnt = self.layers.narrow_weight("layers.2.semantic_token2")
            semantic = graph.op("Add", graph.reshape(semantic, -1, SEMANTIC, width), learnt)
            semantic = graph.reshape(semantic, -1, width)
        tokens = SEMANTIC + stage.tokens
        return self.look(semantic, graph.reshape(both, -1, width), stage, block, SEMANTIC, tokens)

    def look_inside(self, semantic: str, stage: Stage, block: int, local: bool) -> str:
        """Semantic tokens look at each other, all or those of their window."""
        if not local:
            return self.look(semantic, semantic, stage, block, SEMANTIC, SEMANTIC)
        order = semantic_order()
        semantic = self.reorder(semantic, order, SEMANTIC, stage.width)
        found = self.look(semantic, semantic, stage, block, SAMPLE**2, SAMPLE**2)
        return self.reorder(found, np.argsort(order), SEMANTIC, stage.width)

    def look(self, x: str, at: str, stage: Stage, block: int, tokens: int, keys: int) -> str:
        """A block whose `tokens` rows of each group look at `keys` rows of another value."""
        graph, layers, name = self.graph, self.layers, stage.block(block)
        with graph.scope("attention"):
            normed = graph.narrow(layers.layer_norm(x, f"{name}.norm1", self.eps))
            other = normed
            if at != x:
                other = graph.narrow(layers.layer_norm(at, f"{name}.norm1", self.eps))
            query = layers.linear(normed, f"{name}.attn.q")
            key, value = self.keys_values(other, name)
            mixed = self.cross(query, key, value, stage, 1, tokens, keys)
            x = graph.op("Add", x, self.scaled(mixed, f"{name}.attn.proj", f"{name}.layer_scale_1"))
        return self.feed(x, name)

    def keys_values(self, rows: str, name: str) -> tuple[str, str]:
        """As two products of rows `[R, C]`."""
        layers, found = self.layers, []
        weights = np.split(layers.weights[f"{name}.attn.kv.weight"], 2)
        biases = np.split(layers.weights[f"{name}.attn.kv.bias"], 2)
        for part, weight, bias in zip("kv", weights, biases, strict=True):
            names = f"{name}.attn.{part}.weight", f"{name}.attn.{part}.bias"
            inputs = layers.narrow_weight(names[0], weight), layers.narrow_weight(names[1], bias)
            found.append(self.graph.op("Gemm", rows, *inputs, transB=1))
        return found[0], found[1]

    def cross(
        self, query: str, key: str, value: str, stage: Stage, windows: int, tokens: int, keys: int
    ) -> str:
        """Attention of `tokens` to `keys` in each of `windows`, rows in and rows out."""
        graph, dim = self.graph, stage.width // stage.heads

        def heads(rows: str, count: int, *order: int) -> str:
            split = graph.reshape(rows, -1, windows, count, stage.heads, dim)
            return graph.op("Transpose", split, perm=(0, 1, *order))

        query, value = heads(query, tokens, 3, 2, 4), heads(value, keys, 3, 2, 4)
        mixed = attend_heads(graph, query, heads(key, keys, 3, 4, 2), value, dim, None)
        mixed = graph.op("Transpose", mixed, perm=(0, 1, 3, 2, 4))
        return graph.reshape(mixed, -1, stage.width)

    def scaled(self, x: str, name: str, scale: str) -> str:
        """A linear layer and the layer scale after it, in one product."""
        layers = self.layers
        factor = layers.weights[scale]
        weight = layers.weights[f"{name}.weight"] * factor[:, None]
        bias = layers.weights[f"{name}.bias"] * factor
        inputs = (
            layers.narrow_weight(f"{name}.weight", weight),
            layers.narrow_weight(f"{name}.bias", bias),
        )
        return self.graph.op("Gemm", x, *inputs, transB=1)

    def feed(self, x: str, name: str) -> str:
        """The second half of a block with layer scales."""
        graph, layers = self.graph, self.layers
        with graph.scope("mlp"):
            normed = graph.narrow(layers.layer_norm(x, f"{name}.norm2", self.eps))
            hidden = graph.op("Gelu", layers.linear(normed, f"{name}.mlp.fc1"))
            return graph.op(
                "Add", x, self.scaled(hidden, f"{name}.mlp.fc2", f"{name}.layer_scale_2")
            )


class StvitR(Swin):
    name, title = "stvitr", "STViT-R"
    modes = (TokenMode.STATIC,)
    settings = StvitRSettings
    graph = StvitRGraph

    def matches(self, keys: Collection[str]) -> bool:
        return "layers.2.blocks.1.attn.kv.weight" in keys

    def told(self, args: Any) -> dict[str, Any] | None:
        return {"shortcut": bool(args["SHORTCUT"])} if "SHORTCUT" in args else None

    def infer(self, tensors: Tensors) -> StvitRDims:
        dims = super().infer(tensors)
        has_global = "layers.2.semantic_token2" in tensors.arrays
        return StvitRDims(**vars(dims), has_global=has_global)

    def sketch(self, arch: Arch) -> StvitRDims:
        return StvitRDims(**vars(super().sketch(arch)))

    def stem_shapes(self, dims: Dims) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        sizes = {0: (dims.embed_dim // 2, 3), 2: (dims.embed_dim, dims.embed_dim // 2)}
        for part, (outputs, inputs) in sizes.items():
            name = f"patch_embed.proj.{part}"
            shapes[f"{name}.c.weight"] = (outputs, inputs, 3, 3)
            shapes |= norm(f"{name}.bn", outputs)
            shapes |= {f"{name}.bn.running_mean": (outputs,), f"{name}.bn.running_var": (outputs,)}
        return shapes

    def shapes(self, dims: Dims) -> dict[str, Shape]:
        assert isinstance(dims, StvitRDims)
        own: dict[str, Shape] = {}
        if dims.has_global:
            own["layers.2.semantic_token2"] = (1, SEMANTIC, 4 * dims.embed_dim)
        return super().shapes(dims) | own

    def block_shapes(self, dims: SwinDims, stage: int, block: int) -> dict[str, Shape]:
        shapes = super().block_shapes(dims, stage, block)
        if stage != 2 or block % UNIT == 0:
            return shapes
        name, width = f"layers.{stage}.blocks.{block}", dims.embed_dim << stage
        for gone in ("qkv.weight", "qkv.bias", "relative_position_bias_table"):
            del shapes[f"{name}.attn.{gone}"]
        shapes |= linear(f"{name}.attn.q", width, width)
        shapes |= linear(f"{name}.attn.kv", 2 * width, width)
        return shapes | {f"{name}.layer_scale_1": (width,), f"{name}.layer_scale_2": (width,)}

    def check(self, config: ModelConfig) -> None:
        super().check(config)
        side = SIDE * 16
        if config.image_size != (side, side) or config.settings.window != SIDE // WINDOWS:
            raise InputError(
                "STViT-R is defined for windows of 7x7 and images of "
                f"{side}x{side}, not {config.image_size[0]}x{config.image_size[1]}",
                f"use --image-size {side}",
            )
        if config.settings.depths[2] not in (UNIT, 2 * UNIT, 3 * UNIT):
            raise InputError(
                f"the third stage has {config.settings.depths[2]} blocks, not 6, 12 or 18",
                "give a complete STViT-R checkpoint",
            )

    def forward(self, reference: Reference, images: Tensor) -> Passed:
        from svit_deploy.models.reference import Passed

        x = stem(reference, images)
        maps = [x]
        semantic = x
        for stage in stages(reference.config):
            for block in range(stage.depth):
                if stage.index and not block:
                    x = merge(reference, x, stage)
                role = block % UNIT if stage.index == 2 else 0
                if role == 0:
                    x = swin_block(reference, x, stage, block)
                elif role == 5:
                    x = look(reference, x, semantic, stage, block)
                else:
                    semantic = next_semantic(reference, semantic, x, stage, block)
                maps.append(x if role in (0, 5) else semantic)
        return Passed(mean_head(reference, x), maps)


def stem(reference: Reference, images: Tensor) -> Tensor:
    """Image tokens `[B, N, C]`."""
    from torch.nn import functional as F

    x, weights = images, reference.weights
    for part in (0, 2):
        name = f"patch_embed.proj.{part}"
        x = F.conv2d(x, weights[f"{name}.c.weight"], stride=2, padding=1)
        mean, variance = weights[f"{name}.bn.running_mean"], weights[f"{name}.bn.running_var"]
        scale, shift = weights[f"{name}.bn.weight"], weights[f"{name}.bn.bias"]
        x = F.hardswish(F.batch_norm(x, mean, variance, scale, shift, eps=BN_EPS))
    return x.flatten(2).transpose(1, 2)


def next_semantic(reference: Reference, s: Tensor, x: Tensor, stage: Stage, block: int) -> Tensor:
    """What a block inside a unit makes of the semantic tokens `[B, 36, C]`."""
    import torch

    role, name = block % UNIT, stage.block(block)
    if role == 1:
        return begin(reference, x, stage, block)
    if role == 2:
        both = torch.cat([s, x], dim=1)
        if block < UNIT and "layers.2.semantic_token2" in reference.weights:
            s = s + reference.weights["layers.2.semantic_token2"]
        return look(reference, s, both, stage, block)
    if role == 4:
        return look(reference, s, s, stage, block)
    side = (WINDOWS, SAMPLE, WINDOWS, SAMPLE)
    normed = reference.norm(s, f"{name}.norm1", reference.block_eps)
    windows = normed.unflatten(1, side).transpose(2, 3).reshape(-1, SAMPLE**2, stage.width)
    mixed = cross(reference, windows, windows, stage, name)
    mixed = mixed.reshape(len(s), WINDOWS, WINDOWS, SAMPLE, SAMPLE, -1).transpose(2, 3)
    s = s + reference.weights[f"{name}.layer_scale_1"] * mixed.reshape(s.shape)
    return feed(reference, s, name)


def begin(reference: Reference, x: Tensor, stage: Stage, block: int) -> Tensor:
    """The semantic tokens of a unit, from its image tokens `[B, 196, C]`."""
    import torch
    from torch.nn.functional import adaptive_max_pool2d, unfold

    name, batch, width = stage.block(block), len(x), stage.width
    image = x.unflatten(1, (SIDE, SIDE))
    side = SIDE // WINDOWS
    windows = image.reshape(batch, WINDOWS, side, WINDOWS, side, width).transpose(2, 3)
    windows = windows.reshape(-1, side, side, width).permute(0, 3, 1, 2)
    pooled = adaptive_max_pool2d(windows, SAMPLE).flatten(2).transpose(1, 2)  # [B * 4, 9, C]
    around = unfold(image.permute(0, 3, 1, 2), AROUND, stride=STRIDE)
    around = around.reshape(batch, width, AROUND**2, -1).permute(0, 3, 2, 1).flatten(0, 1)
    keys = torch.cat([pooled, around], dim=1)
    query, keys = (reference.norm(v, f"{name}.norm1", reference.block_eps) for v in (pooled, keys))
    s = reference.weights[f"{name}.layer_scale_1"] * cross(reference, query, keys, stage, name)
    if reference.config.settings.shortcut:
        s = pooled + s
    s = s.reshape(batch, WINDOWS, WINDOWS, SAMPLE, SAMPLE, width).transpose(2, 3)
    return feed(reference, s.reshape(batch, SEMANTIC, width), name)


def look(reference: Reference, x: Tensor, at: Tensor, stage: Stage, block: int) -> Tensor:
    """A block whose tokens `[B, T, C]` look at others `[B, K, C]`."""
    name = stage.block(block)
    query, keys = (reference.norm(v, f"{name}.norm1", reference.block_eps) for v in (x, at))
    mixed = cross(reference, query, keys, stage, name)
    return feed(reference, x + reference.weights[f"{name}.layer_scale_1"] * mixed, name)


def cross(reference: Reference, x: Tensor, at: Tensor, stage: Stage, name: str) -> Tensor:
    """Attention of normed tokens `[B, T, C]` to normed others `[B, K, C]`, and its projection."""
    from torch.nn.functional import scaled_dot_product_attention

    query = reference.linear(x, f"{name}.attn.q").unflatten(2, (stage.heads, -1)).transpose(1, 2)
    kv = reference.linear(at, f"{name}.attn.kv").unflatten(2, (2, stage.heads, -1))
    key, value = kv.permute(2, 0, 3, 1, 4)
    mixed = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    return reference.linear(mixed, f"{name}.attn.proj")


def feed(reference: Reference, x: Tensor, name: str) -> Tensor:
    from torch.nn.functional import gelu

    hidden = reference.norm(x, f"{name}.norm2", reference.block_eps)
    hidden = gelu(reference.linear(hidden, f"{name}.mlp.fc1"))
    scale = reference.weights[f"{name}.layer_scale_2"]
    return x + scale * reference.linear(hidden, f"{name}.mlp.fc2")
