"""Swin's ONNX graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from svit_deploy.backbones.staged import StagedGraph
from svit_deploy.backbones.swin.settings import CORNERS, FAINT, WindowStage, stages
from svit_deploy.graph.builder import BFLOAT16
from svit_deploy.graph.groups import Groups, attend_in_groups
from svit_deploy.names import EMBEDDING


class SwinGraph(StagedGraph):
    def stages(self) -> Sequence[WindowStage]:
        return stages(self.config)

    def places(self) -> list[tuple[Any, int]]:
        return [(stage, block) for stage in self.stages() for block in range(stage.depth)]

    def embed(self, images: str) -> str:
        graph, width, exact = self.graph, self.config.embed_dim, self.exact_convolutions
        with graph.scope("embedding"):
            x = self.stem(images if exact else graph.to_precision(images), exact)
            sides = range(2, 2 + len(self.places()[0][0].sides))
            rows = graph.reshape(graph.op("Transpose", x, perm=(0, *sides, 1)), -1, width)
            rows = self.after_stem(graph.to_precision(rows) if exact else rows)
        return graph.rename(rows, EMBEDDING)

    @property
    def exact_convolutions(self) -> bool:
        """bfloat16 is no type of ONNX convolutions before opset 22: float32 then."""
        return self.graph.dtype == BFLOAT16

    def stem(self, images: str, exact: bool) -> str:
        """`[B, 3, H, W]` -> `[B, C, rows, columns]`, in float32 if `exact`."""
        weights = self.layers.weights
        weight, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
        size = weight.shape[2:]
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

    def attend(self, x: str, stage: Any, block: int) -> str:
        """Attention inside windows of rows `[B * tokens, C]`, added to them."""
        graph, layers, name = self.graph, self.layers, stage.block(block)
        order = window_order(stage, stage.shifts(block))
        with graph.scope("attention"):
            normed = graph.to_precision(layers.layer_norm(x, f"{name}.norm1", self.eps))
            normed, tokens = self.with_zeros(normed, order, stage)
            qkv, windows = layers.qkv(normed, f"{name}.attn"), Groups(order, tokens)
            biases = self.bias(stage, block), self.apart(stage, block)
            mixed = attend_in_groups(graph, qkv, windows, windows, stage, stage.tokens, *biases)
            return graph.op("Add", x, layers.linear(mixed, f"{name}.attn.proj"))

    def with_zeros(self, x: str, order: np.ndarray, stage: WindowStage) -> tuple[str, int]:
        """Rows of a stage, with one of zeros behind each image's if an order of them has one more.

        Returns:
            The rows, and how many each image has.
        """
        graph, tokens = self.graph, stage.tokens
        if order.max() < tokens:
            return x, tokens
        split = graph.to_float32(graph.reshape(x, -1, tokens, stage.width))
        padded = graph.op("Pad", split, graph.constant([0, 0, 0, 0, 1, 0]))
        return graph.reshape(graph.to_precision(padded), -1, stage.width), tokens + 1

    def bias(self, stage: Any, block: int) -> str:
        """Relative positions, and with shifted windows what is hidden `[windows or 1, H, K, K]`."""
        table = self.layers.weights[f"{stage.block(block)}.attn.relative_position_bias_table"]
        bias = position_bias(table, stage.window)
        shifts = stage.shifts(block)
        if any(shifts):
            label = regions(stage, shifts)
            apart = label[:, :, None] != label[:, None]
            bias = bias + np.where(apart, np.float32(FAINT), np.float32(0))[:, None]
        return self.graph.number(bias)

    def apart(self, stage: Any, block: int) -> str | None:
        """What a shift hides `[windows, 1, K, K]`, where that is not part of the bias."""
        return None

    def shrink(self, x: str, stage: Any) -> str:
        """Each two by two tokens of the stage before become one of twice the width."""
        graph, layers, before = self.graph, self.layers, self.stages()[stage.index - 1]
        width, beyond = before.width, [(0, n % 2) for n in before.sides[-2:]]
        still = [(0, 0)] * (len(before.sides) - 2)
        raster = np.pad(places_of(before), still + beyond, constant_values=before.tokens)
        corners = [raster[..., row::2, column::2] for row, column in CORNERS]
        order = np.stack(corners, axis=-1).reshape(-1)
        x, tokens = self.with_zeros(x, order, before)
        split = graph.reshape(x, -1, tokens, width)
        x = graph.reshape(graph.op("Gather", split, graph.constant(order), axis=1), -1, 4 * width)
        name = f"layers.{stage.index - 1}.downsample"
        with graph.scope("shrink"):
            normed = graph.to_precision(layers.layer_norm(x, f"{name}.norm", self.eps))
            weight = layers.cast_weight(f"{name}.reduction.weight")
            return graph.op("Gemm", normed, weight, transB=1)


def places_of(stage: WindowStage) -> np.ndarray:
    """The number of each token, in the shape of the stage's map."""
    return np.arange(stage.tokens).reshape(stage.sides)


def window_order(stage: WindowStage, shifts: Sequence[int]) -> np.ndarray:
    """Numbers of tokens `[windows, K]`; `stage.tokens` where windows reach beyond the map."""
    sides = zip(stage.sides, stage.windows, strict=True)
    raster = np.pad(
        places_of(stage), [(0, -n % side) for n, side in sides], constant_values=stage.tokens
    )
    rolled = np.roll(raster, [-shift for shift in shifts], tuple(range(raster.ndim)))
    return in_windows(rolled, stage)


def in_windows(raster: np.ndarray, stage: WindowStage) -> np.ndarray:
    """What windows hold of a map that they tile, `[windows, K]`."""
    axes, sides = raster.ndim, zip(raster.shape, stage.windows, strict=True)
    split = raster.reshape([n for whole, side in sides for n in (whole // side, side)])
    order = (*range(0, 2 * axes, 2), *range(1, 2 * axes, 2))
    return split.transpose(order).reshape(-1, stage.inside)


def regions(stage: WindowStage, shifts: Sequence[int]) -> np.ndarray:
    """The part of a shifted map that each place of a window is in `[windows, K]`.

    Those of a window in another part were not neighbours.
    """
    label = np.zeros([1] * len(shifts), np.int64)
    for axis, (whole, side, shift) in enumerate(
        zip(stage.sides, stage.windows, shifts, strict=True)
    ):
        length = whole + -whole % side
        place = np.arange(length)
        part = (place >= length - side).astype(int) + (place >= length - shift)
        rest = len(shifts) - axis - 1
        label = 3 * label + (part if shift else 0 * part).reshape(-1, *[1] * rest)
    return in_windows(label, stage)


def position_index(windows: Sequence[int], largest: Sequence[int] = ()) -> np.ndarray:
    """The row of a table of relative positions for each query and key of a window `[K, K]`.

    Args:
        largest: the windows that the table is of, if those are larger.
    """
    largest = largest or windows
    place = np.stack(np.unravel_index(np.arange(np.prod(windows)), windows))
    apart = place[:, :, None] - place[:, None] + np.array(largest)[:, None, None] - 1
    index: np.ndarray = np.ravel_multi_index(tuple(apart), tuple(2 * side - 1 for side in largest))
    return index


def position_bias(table: np.ndarray, window: int) -> np.ndarray:
    """Of a table of relative positions, what each query and key of a window has `[1, H, K, K]`.

    Args:
        table: `[side², H]`, of windows as large or larger.
    """
    largest = (math.isqrt(len(table)) + 1) // 2
    return table[position_index((window, window), (largest, largest))].transpose(2, 0, 1)[None]
