"""Swin's ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from svit_deploy.backbones.staged import StagedGraph
from svit_deploy.backbones.swin.settings import CORNERS, HIDDEN, SwinStage, places
from svit_deploy.graph.builder import BFLOAT16
from svit_deploy.graph.layers import attend_heads
from svit_deploy.graph.maps import Dim
from svit_deploy.names import EMBEDDING


class SwinGraph(StagedGraph):
    def places(self) -> list[tuple[SwinStage, int]]:
        return places(self.config)

    def embed(self, images: str) -> str:
        graph, width, exact = self.graph, self.config.embed_dim, self.exact_convolutions
        with graph.scope("embedding"):
            x = self.stem(images if exact else graph.to_precision(images), exact)
            flat = graph.reshape(x, -1, width, self.embedded_tokens)
            rows = graph.reshape(graph.op("Transpose", flat, perm=(0, 2, 1)), -1, width)
            rows = self.after_stem(graph.to_precision(rows) if exact else rows)
        return graph.rename(rows, EMBEDDING)

    @property
    def embedded_tokens(self) -> Dim:
        """Tokens that the first stage begins with."""
        return self.places()[0][0].tokens

    @property
    def exact_convolutions(self) -> bool:
        """bfloat16 is no type of ONNX convolutions before opset 22: float32 then."""
        return self.graph.dtype == BFLOAT16

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
        add = self.graph.weight if exact else self.layers.cast_weight
        inputs = add(f"{name}.weight", weight), add(f"{name}.bias", bias)
        return self.graph.op("Conv", x, *inputs, **attributes)

    def after_stem(self, rows: str) -> str:
        return self.graph.to_precision(self.layers.layer_norm(rows, "patch_embed.norm", self.eps))

    @property
    def eps(self) -> float:
        return self.config.block_eps

    def mix(self, x: str, block: int) -> tuple[str, str]:
        x = self.attend(x, *self.places()[block])
        return x, x

    def feed(self, x: str, block: int) -> str:
        return self.layers.feed(x, self.name_of(block), self.eps)

    def attend(self, x: str, stage: SwinStage, block: int) -> str:
        """Attention inside windows of rows `[B * tokens, C]`, added to them."""
        graph, layers, name = self.graph, self.layers, stage.block(block)
        order = window_order(stage, stage.shift(block))
        with graph.scope("attention"):
            normed = graph.to_precision(layers.layer_norm(x, f"{name}.norm1", self.eps))
            windows = self.reorder(normed, order, stage.tokens, stage.width)
            mixed = self.window_attention(
                layers.qkv(windows, f"{name}.attn"), stage, self.bias(stage, block)
            )
            mixed = layers.linear(mixed, f"{name}.attn.proj")
            back = self.reorder(mixed, np.argsort(order), stage.tokens, stage.width)
            return graph.op("Add", x, back)

    def reorder(self, x: str, order: np.ndarray, tokens: int, width: int) -> str:
        """Rows of each image in another order, some of them twice if need be."""
        graph = self.graph
        if np.array_equal(order, np.arange(tokens)):
            return x
        split = graph.reshape(x, -1, tokens, width)
        return graph.reshape(graph.op("Gather", split, graph.constant(order), axis=1), -1, width)

    def window_attention(
        self, qkv: Sequence[str], stage: SwinStage, bias: str | None, windows: Dim = 0
    ) -> str:
        """Softmax attention in each window, rows `[B * tokens, C]` window by window.

        Args:
            windows: of an image; by default those that tile the stage's map.
            bias: `[windows or 1, H, K, K]`, added to the scores.
        """
        graph, inside = self.graph, stage.window**2
        windows, dim = windows or stage.tokens // inside, stage.width // stage.heads

        def heads(rows: str, *order: int) -> str:
            split = graph.reshape(rows, -1, windows, inside, stage.heads, dim)
            return graph.op("Transpose", split, perm=(0, 1, *order))

        query, key, value = qkv
        query, key, value = heads(query, 3, 2, 4), heads(key, 3, 4, 2), heads(value, 3, 2, 4)
        mixed = attend_heads(graph, query, key, value, dim, bias)
        mixed = graph.op("Transpose", mixed, perm=(0, 1, 3, 2, 4))
        return graph.reshape(mixed, -1, stage.width)

    def bias(self, stage: SwinStage, block: int) -> str:
        """Relative positions, and with shifted windows what is hidden `[windows or 1, H, K, K]`."""
        table = self.layers.weights[f"{stage.block(block)}.attn.relative_position_bias_table"]
        bias = position_bias(table, stage.window)
        if shift := stage.shift(block):
            bias = bias + hidden_pairs(stage, shift)[:, None]
        return self.graph.number(bias)

    def shrink(self, x: str, stage: SwinStage) -> str:
        """Each two by two tokens of the stage before become one of twice the width."""
        graph, layers, width = self.graph, self.layers, stage.width // 2
        raster = np.arange(4 * stage.tokens).reshape(2 * stage.rows, 2 * stage.columns)
        corners = [raster[row::2, column::2] for row, column in CORNERS]
        order = np.stack(corners, axis=-1).reshape(-1)
        x = graph.reshape(self.reorder(x, order, 4 * stage.tokens, width), -1, 4 * width)
        name = f"layers.{stage.index - 1}.downsample"
        with graph.scope("merge"):
            normed = graph.to_precision(layers.layer_norm(x, f"{name}.norm", self.eps))
            weight = layers.cast_weight(f"{name}.reduction.weight")
            return graph.op("Gemm", normed, weight, transB=1)


def window_order(stage: SwinStage, shift: int) -> np.ndarray:
    """Positions in the raster of all tokens `[tokens]`, window by window."""
    rows = (np.arange(stage.rows) + shift) % stage.rows
    columns = (np.arange(stage.columns) + shift) % stage.columns
    raster = rows[:, None] * stage.columns + columns
    side = stage.window
    split = raster.reshape(stage.rows // side, side, stage.columns // side, side)
    return split.transpose(0, 2, 1, 3).reshape(-1)


def position_bias(table: np.ndarray, window: int) -> np.ndarray:
    """Of a table of relative positions, what each query and key of a window has `[1, H, K, K]`."""
    row, column = np.divmod(np.arange(window**2), window)
    rows = row[:, None] - row + window - 1
    columns = column[:, None] - column + window - 1
    return table[rows * (2 * window - 1) + columns].transpose(2, 0, 1)[None]


def hidden_pairs(stage: SwinStage, shift: int) -> np.ndarray:
    """`HIDDEN` where query and key of a shifted window were not neighbours `[windows, K, K]`."""

    def part(length: int) -> np.ndarray:
        place = np.arange(length)
        return (place >= length - stage.window).astype(int) + (place >= length - shift)

    label = part(stage.rows)[:, None] * 3 + part(stage.columns)
    label = label.reshape(-1)[window_order(stage, 0)].reshape(-1, stage.window**2)
    return np.where(label[:, :, None] == label[:, None], 0, HIDDEN).astype(np.float32)
