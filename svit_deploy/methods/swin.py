"""Swin: attention in windows, shifted in every second block; the dense twin of STViT-R.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021;
keys and numbers are those of microsoft/Swin-Transformer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from svit_deploy.config import ModelConfig
from svit_deploy.errors import InputError
from svit_deploy.export.builder import BFLOAT16
from svit_deploy.export.layers import attend_heads
from svit_deploy.export.names import EMBEDDING, LOGITS, block_name
from svit_deploy.export.tokens import Decided
from svit_deploy.export.vit import VitGraph
from svit_deploy.methods.keys import Dims, Shape, Tensors, linear, norm
from svit_deploy.methods.method import Method

if TYPE_CHECKING:
    from torch import Tensor

    from svit_deploy.models.presets import Arch
    from svit_deploy.models.reference import Passed, Reference

STAGES = 4
CORNERS = ((0, 0), (1, 0), (0, 1), (1, 1))
"""Row and column of the four patches that merge into one, in the order of their channels."""
HIDDEN = -100.0
"""Added to the scores of keys that a shift brings into a window from the other side."""


@dataclass(frozen=True)
class SwinSettings:
    """What the weights tell: blocks and heads of each stage, tokens along a window's side."""

    depths: tuple[int, ...]
    stage_heads: tuple[int, ...]
    window: int


@dataclass(frozen=True)
class SwinDims(Dims):
    """`embed_dim` is the width of the first stage, `depth` counts all blocks."""

    depths: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    window: int = 0


@dataclass(frozen=True)
class Stage:
    """One resolution: `rows` x `columns` tokens of `width` channels."""

    index: int
    rows: int
    columns: int
    width: int
    heads: int
    window: int
    depth: int

    @property
    def tokens(self) -> int:
        return self.rows * self.columns

    def shift(self, block: int) -> int:
        """How far windows are moved in a block of the stage."""
        odd = block % 2 and min(self.rows, self.columns) > self.window
        return self.window // 2 if odd else 0

    def block(self, block: int) -> str:
        return f"layers.{self.index}.blocks.{block}"


def stages(config: ModelConfig) -> list[Stage]:
    settings: SwinSettings = config.settings
    rows, columns = config.grid
    return [
        Stage(
            index=i,
            rows=rows >> i,
            columns=columns >> i,
            width=config.embed_dim << i,
            heads=settings.stage_heads[i],
            window=settings.window,
            depth=settings.depths[i],
        )
        for i in range(STAGES)
    ]


class SwinGraph(VitGraph):
    def embed(self, images: str) -> str:
        graph, width = self.graph, self.config.embed_dim
        # bfloat16 is no type of ONNX convolutions before opset 22: float32 then.
        exact = graph.dtype == BFLOAT16
        with graph.scope("embedding"):
            x = self.stem(images if exact else graph.narrow(images), exact)
            flat = graph.reshape(x, 0, width, self.config.num_patches)
            rows = graph.reshape(graph.op("Transpose", flat, perm=(0, 2, 1)), -1, width)
            rows = self.after_stem(graph.narrow(rows) if exact else rows)
        return graph.rename(rows, EMBEDDING)

    def stem(self, images: str, exact: bool) -> str:
        """`[B, 3, H, W]` -> `[B, C, rows, columns]`, in float32 if `exact`."""
        patch, weights = self.config.patch_size, self.layers.weights
        weight, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
        size = (patch, patch)
        return self.convolve(
            images, "patch_embed.proj", weight, bias, exact, kernel_shape=size, strides=size
        )

    def convolve(
        self,
        x: str,
        name: str,
        weight: np.ndarray,
        bias: np.ndarray,
        exact: bool,
        **attributes: Any,
    ) -> str:
        add = self.graph.weight if exact else self.layers.narrow_weight
        inputs = add(f"{name}.weight", weight), add(f"{name}.bias", bias)
        return self.graph.op("Conv", x, *inputs, **attributes)

    def after_stem(self, rows: str) -> str:
        return self.graph.narrow(self.layers.layer_norm(rows, "patch_embed.norm", self.eps))

    @property
    def eps(self) -> float:
        return self.config.block_eps

    def run(self, x: str) -> tuple[str, Sequence[Decided]]:
        graph, number = self.graph, 0
        for stage in stages(self.config):
            for block in range(stage.depth):
                with graph.scope(f"block_{number}"):
                    if stage.index and not block:
                        x = self.merge_patches(x, stage)
                    x = self.swin_block(x, stage, block)
                x = graph.rename(x, block_name(number))
                number += 1
        return self.classify_mean(x, stage), []

    def swin_block(self, x: str, stage: Stage, block: int) -> str:
        """Attention inside windows of rows `[B * tokens, C]`, then the MLP."""
        graph, layers, name = self.graph, self.layers, stage.block(block)
        order = window_order(stage, stage.shift(block))
        with graph.scope("attention"):
            normed = graph.narrow(layers.layer_norm(x, f"{name}.norm1", self.eps))
            windows = self.reorder(normed, order, stage.tokens, stage.width)
            mixed = self.window_attention(
                layers.qkv(windows, f"{name}.attn"), stage, self.bias(stage, block)
            )
            mixed = layers.linear(mixed, f"{name}.attn.proj")
            back = self.reorder(mixed, np.argsort(order), stage.tokens, stage.width)
            x = graph.op("Add", x, back)
        return layers.feed_forward(x, name, self.eps)

    def reorder(self, x: str, order: np.ndarray, tokens: int, width: int) -> str:
        """Rows of each image in another order, some of them twice if need be."""
        graph = self.graph
        if np.array_equal(order, np.arange(tokens)):
            return x
        split = graph.reshape(x, -1, tokens, width)
        return graph.reshape(graph.op("Gather", split, graph.constant(order), axis=1), -1, width)

    def window_attention(self, qkv: Sequence[str], stage: Stage, bias: str | None) -> str:
        """Softmax attention in each window, rows `[B * tokens, C]` window by window.

        Args:
            bias: `[windows or 1, H, K, K]`, added to the scores.
        """
        graph, inside = self.graph, stage.window**2
        windows, dim = stage.tokens // inside, stage.width // stage.heads

        def heads(rows: str, *order: int) -> str:
            split = graph.reshape(rows, -1, windows, inside, stage.heads, dim)
            return graph.op("Transpose", split, perm=(0, 1, *order))

        query, key, value = qkv
        query, key, value = heads(query, 3, 2, 4), heads(key, 3, 4, 2), heads(value, 3, 2, 4)
        mixed = attend_heads(graph, query, key, value, dim, bias)
        mixed = graph.op("Transpose", mixed, perm=(0, 1, 3, 2, 4))
        return graph.reshape(mixed, -1, stage.width)

    def bias(self, stage: Stage, block: int) -> str:
        """Relative positions, and with shifted windows what is hidden `[windows or 1, H, K, K]`."""
        table = self.layers.weights[f"{stage.block(block)}.attn.relative_position_bias_table"]
        bias = table[relative_index(stage.window)].transpose(2, 0, 1)[None]
        if shift := stage.shift(block):
            bias = bias + hidden_pairs(stage, shift)[:, None]
        return self.graph.number(bias)

    def merge_patches(self, x: str, stage: Stage) -> str:
        """Each two by two tokens of the stage before become one of twice the width."""
        graph, layers, width = self.graph, self.layers, stage.width // 2
        raster = np.arange(4 * stage.tokens).reshape(2 * stage.rows, 2 * stage.columns)
        corners = [raster[row::2, column::2] for row, column in CORNERS]
        order = np.stack(corners, axis=-1).reshape(-1)
        x = graph.reshape(self.reorder(x, order, 4 * stage.tokens, width), -1, 4 * width)
        name = f"layers.{stage.index - 1}.downsample"
        with graph.scope("merge"):
            normed = graph.narrow(layers.layer_norm(x, f"{name}.norm", self.eps))
            weight = layers.narrow_weight(f"{name}.reduction.weight")
            return graph.op("Gemm", normed, weight, transB=1)

    def classify_mean(self, x: str, stage: Stage) -> str:
        """Norm, the mean of all tokens, head."""
        graph, layers = self.graph, self.layers
        with graph.scope("head"):
            norm = layers.layer_norm(x, "norm", self.config.norm_eps)
            norm = graph.reshape(norm, -1, stage.tokens, stage.width)
            mean = graph.op("ReduceMean", norm, graph.constant([1]), keepdims=0)
            return graph.rename(layers.exact_linear(mean, "head"), LOGITS)


def window_order(stage: Stage, shift: int) -> np.ndarray:
    """Positions in the raster of all tokens `[tokens]`, window by window."""
    rows = (np.arange(stage.rows) + shift) % stage.rows
    columns = (np.arange(stage.columns) + shift) % stage.columns
    raster = rows[:, None] * stage.columns + columns
    side = stage.window
    split = raster.reshape(stage.rows // side, side, stage.columns // side, side)
    return split.transpose(0, 2, 1, 3).reshape(-1)


def relative_index(window: int) -> np.ndarray:
    """The row of the bias table for each query and key of a window `[K, K]`."""
    row, column = np.divmod(np.arange(window**2), window)
    rows = row[:, None] - row + window - 1
    columns = column[:, None] - column + window - 1
    return rows * (2 * window - 1) + columns


def hidden_pairs(stage: Stage, shift: int) -> np.ndarray:
    """`HIDDEN` where query and key of a shifted window were not neighbours `[windows, K, K]`."""

    def part(length: int) -> np.ndarray:
        place = np.arange(length)
        return (place >= length - stage.window).astype(int) + (place >= length - shift)

    label = part(stage.rows)[:, None] * 3 + part(stage.columns)
    label = label.reshape(-1)[window_order(stage, 0)].reshape(-1, stage.window**2)
    return np.where(label[:, :, None] == label[:, None], 0, HIDDEN).astype(np.float32)


class Swin(Method):
    name, title = "swin", "Swin"
    eps = (1e-5, 1e-5, 1e-5)
    settings = SwinSettings
    graph = SwinGraph
    class_token = False
    has_positions = False

    def matches(self, keys: Collection[str]) -> bool:
        return "layers.0.blocks.0.attn.relative_position_bias_table" in keys

    def is_spare(self, key: str) -> bool:
        return key.endswith((".relative_position_index", ".attn_mask", ".num_batches_tracked"))

    def infer(self, tensors: Tensors) -> SwinDims:
        depths, heads, side = [], [], 0
        for stage in range(STAGES):
            name = f"layers.{stage}.blocks.0.attn.relative_position_bias_table"
            table = tensors.shape(name, 2)
            depths.append(tensors.count(rf"layers\.{stage}\.blocks"))
            heads.append(table[1])
            side = side or (math.isqrt(table[0]) + 1) // 2
        return SwinDims(
            family=self.name,
            embed_dim=tensors.shape("layers.0.blocks.0.norm1.weight", 1)[0],
            depth=sum(depths),
            mlp_dim=tensors.shape("layers.0.blocks.0.mlp.fc1.weight", 2)[0],
            patch_size=4,
            num_patches=(8 * side) ** 2,  # one window in the last stage
            num_classes=tensors.shape("head.weight", 2)[0],
            num_heads=heads[0],
            depths=tuple(depths),
            heads=tuple(heads),
            window=side,
        )

    def sketch(self, arch: Arch) -> SwinDims:
        assert arch.embed_dim and arch.image_size
        heads = tuple(arch.num_heads << stage for stage in range(STAGES))
        depths = tuple(arch.settings["depths"])
        return SwinDims(
            family=self.name,
            embed_dim=arch.embed_dim,
            depth=sum(depths),
            mlp_dim=4 * arch.embed_dim,
            patch_size=4,
            num_patches=(arch.image_size[0] // 4) * (arch.image_size[1] // 4),
            num_classes=arch.num_classes or 1000,
            num_heads=heads[0],
            depths=depths,
            heads=heads,
            window=arch.image_size[0] // 32,
        )

    def told_by_weights(self, dims: Dims) -> dict[str, Any]:
        assert isinstance(dims, SwinDims)
        return {"depths": dims.depths, "stage_heads": dims.heads, "window": dims.window}

    def shapes(self, dims: Dims) -> dict[str, Shape]:
        assert isinstance(dims, SwinDims)
        shapes = self.stem_shapes(dims)
        for stage in range(STAGES):
            width = dims.embed_dim << stage
            for block in range(dims.depths[stage]):
                shapes |= self.block_shapes(dims, stage, block)
            if stage + 1 < STAGES:
                name = f"layers.{stage}.downsample"
                shapes |= norm(f"{name}.norm", 4 * width)
                shapes[f"{name}.reduction.weight"] = (2 * width, 4 * width)
        return shapes | norm("norm", width) | linear("head", dims.num_classes, width)

    def stem_shapes(self, dims: Dims) -> dict[str, Shape]:
        width, patch = dims.embed_dim, dims.patch_size
        weights: dict[str, Shape] = {"patch_embed.proj.weight": (width, 3, patch, patch)}
        return weights | {"patch_embed.proj.bias": (width,)} | norm("patch_embed.norm", width)

    def block_shapes(self, dims: SwinDims, stage: int, block: int) -> dict[str, Shape]:
        name, width = f"layers.{stage}.blocks.{block}", dims.embed_dim << stage
        hidden = dims.mlp_dim << stage
        shapes = norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
        shapes |= linear(f"{name}.attn.qkv", 3 * width, width)
        shapes |= linear(f"{name}.attn.proj", width, width)
        shapes |= linear(f"{name}.mlp.fc1", hidden, width)
        shapes |= linear(f"{name}.mlp.fc2", width, hidden)
        table = (2 * dims.window - 1) ** 2, dims.heads[stage]
        return shapes | {f"{name}.attn.relative_position_bias_table": table}

    def check(self, config: ModelConfig) -> None:
        settings: SwinSettings = config.settings
        heads, depths = settings.stage_heads, settings.depths
        if len(heads) != STAGES or len(depths) != STAGES or min(*heads, *depths) < 1:
            raise InputError(
                f"depths {list(depths)} and heads {list(heads)} are not of {STAGES} stages",
                "give a complete Swin checkpoint",
            )
        side = 32 * settings.window
        if side < 32 or any(length % side for length in config.image_size):
            height, width = config.image_size
            raise InputError(
                f"windows of {settings.window}x{settings.window} do not tile an image of "
                f"{height}x{width}",
                f"use --image-size {side}",
            )
        for stage in stages(config):
            if stage.width % stage.heads:
                raise InputError(
                    f"{stage.heads} heads do not divide the width {stage.width} of stage "
                    f"{stage.index}",
                    "give a complete Swin checkpoint",
                )

    def forward(self, reference: Reference, images: Tensor) -> Passed:
        from svit_deploy.models.reference import Passed

        x = patch_norm(reference, images)
        maps = [x]
        for stage in stages(reference.config):
            for block in range(stage.depth):
                if stage.index and not block:
                    x = merge(reference, x, stage)
                x = swin_block(reference, x, stage, block)
                maps.append(x)
        return Passed(mean_head(reference, x), maps)


def patch_norm(reference: Reference, images: Tensor) -> Tensor:
    """Patches `[B, N, C]` of images."""
    from torch.nn.functional import conv2d

    weights = reference.weights
    weight, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    x = conv2d(images, weight, bias, stride=reference.config.patch_size)
    return reference.norm(x.flatten(2).transpose(1, 2), "patch_embed.norm", reference.block_eps)


def swin_block(reference: Reference, x: Tensor, stage: Stage, block: int) -> Tensor:
    """A block on `[B, tokens, C]`."""
    import torch
    from torch.nn.functional import gelu

    name, side, shift = stage.block(block), stage.window, stage.shift(block)
    batch, down, across = len(x), stage.rows // side, stage.columns // side
    y = reference.norm(x, f"{name}.norm1", reference.block_eps)
    y = y.unflatten(1, (stage.rows, stage.columns)).roll((-shift, -shift), (1, 2))
    y = (
        y.reshape(batch, down, side, across, side, -1)
        .transpose(2, 3)
        .reshape(-1, side**2, stage.width)
    )
    qkv = reference.linear(y, f"{name}.attn.qkv").unflatten(2, (3, stage.heads, -1))
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    apart = places[:, None] - places[None] + side - 1
    table = reference.weights[f"{name}.attn.relative_position_bias_table"]
    scores = scores + table[apart[..., 0] * (2 * side - 1) + apart[..., 1]].permute(2, 0, 1)
    if shift:
        region = torch.zeros(stage.rows, stage.columns)
        cuts = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
        for number, (rows, columns) in enumerate((r, c) for r in cuts for c in cuts):
            region[rows, columns] = number
        region = region.reshape(down, side, across, side).transpose(1, 2).reshape(-1, side**2)
        mask = (region[:, None] != region[:, :, None]) * HIDDEN
        scores = (scores.unflatten(0, (batch, -1)) + mask[:, None]).flatten(0, 1)
    y = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    y = reference.linear(y, f"{name}.attn.proj")
    y = y.reshape(batch, down, across, side, side, -1).transpose(2, 3)
    y = y.reshape(batch, stage.rows, stage.columns, -1).roll((shift, shift), (1, 2))
    x = x + y.flatten(1, 2)
    y = reference.norm(x, f"{name}.norm2", reference.block_eps)
    return x + reference.linear(gelu(reference.linear(y, f"{name}.mlp.fc1")), f"{name}.mlp.fc2")


def merge(reference: Reference, x: Tensor, stage: Stage) -> Tensor:
    """From the tokens of the stage before to those of this one."""
    import torch
    from torch.nn.functional import linear

    name = f"layers.{stage.index - 1}.downsample"
    x = x.unflatten(1, (2 * stage.rows, 2 * stage.columns))
    x = torch.cat([x[:, row::2, column::2] for row, column in CORNERS], dim=-1).flatten(1, 2)
    x = reference.norm(x, f"{name}.norm", reference.block_eps)
    return linear(x, reference.weights[f"{name}.reduction.weight"])


def mean_head(reference: Reference, x: Tensor) -> Tensor:
    x = reference.norm(x, "norm", reference.norm_eps).mean(dim=1)
    return reference.linear(x, "head")
