"""The ONNX graph of multi-scale features."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from svit_deploy.graph.builder import INT64_MAX
from svit_deploy.graph.layers import attention
from svit_deploy.graph.maps import map_op, map_size, to_map, to_rows
from svit_deploy.methods.mergence import MergenceGraph
from svit_deploy.methods.multiscale.settings import CONVOLUTIONS, half
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.positions import interpolate_positions


class MultiScaleGraph(MergenceGraph):
    """`low` are the rows of the low group, `[B * (1 + N / 4), C]`, until both are one."""

    low = ""

    def block(self, block: int) -> str:
        config = self.config
        first, count = config.settings.prune_blocks[0], 1 + config.num_patches // 4
        if block > first:
            return super().block(block)
        if not block:
            self.low = self.begin()
        if block == first:
            self.fuse()
            return super().block(block)
        with self.graph.scope("low"):
            self.low = self.writer.plain_block(self.low, block, count)
        if block >= config.settings.cheap_blocks:
            return super().block(block)
        return self.attend_cheaply(block)

    def split(self, rows: str, count: int) -> tuple[str, str]:
        """Rows -> the class tokens `[B, 1, C]` and the others `[B, count - 1, C]`."""
        graph = self.graph
        tokens = graph.reshape(rows, -1, count, self.config.embed_dim)
        return graph.slice(tokens, 0, 1), graph.slice(tokens, 1, INT64_MAX)

    def means(self, patches: str) -> str:
        """Of tokens `[B, N, C]` two by two `[B, N / 4, C]`."""
        graph, width, (rows, columns) = self.graph, self.config.embed_dim, half(self.config.grid)
        cells = graph.reshape(graph.to_float32(patches), -1, rows, 2, columns, 2, width)
        means = graph.op("ReduceMean", cells, graph.constant([2, 4]), keepdims=0)
        return graph.reshape(graph.to_precision(means), -1, rows * columns, width)

    def begin(self) -> str:
        graph, layers, width = self.graph, self.writer.layers, self.config.embed_dim
        first, codes = low_codes(self.config, layers.weights)
        with graph.scope("low"):
            _, patches = self.split(self.rows, self.config.num_tokens)
            means = graph.op("Add", self.means(patches), layers.cast_weight("low_codes", codes))
            token = layers.cast_weight("low_token", first)
            batch = graph.op("Concat", graph.shape(means, 0), graph.constant([1, 1]), axis=0)
            tokens = graph.op("Concat", graph.op("Expand", token, batch), means, axis=1)
            return graph.reshape(tokens, -1, width)

    def attend_cheaply(self, block: int) -> str:
        config, graph, writer = self.config, self.graph, self.writer
        layers, eps, name = writer.layers, config.block_eps, f"blocks.{block}"
        tokens, count = config.num_tokens, 1 + config.num_patches // 4
        grid, settings = writer.grid, config.settings

        def norm(rows: str) -> str:
            return graph.to_precision(layers.layer_norm(rows, f"{name}.norm1", eps))

        with graph.scope("attention"):
            rows = norm(self.rows) if settings.mean_of_normed else self.rows
            first, patches = self.split(rows, tokens)
            small = graph.op("Concat", first, self.means(patches), axis=1)
            small = graph.reshape(small, -1, config.embed_dim)
            small = small if settings.mean_of_normed else norm(small)
            qkv = layers.qkv(small, f"{name}.attn")
            mixed = attention(graph, qkv, count, grid.num_heads, grid.head_dim)
            mixed = layers.linear(mixed, f"{name}.attn.proj")
            mixed = graph.reshape(mixed, -1, count, config.embed_dim)
            places = np.concatenate([[0], 1 + low_cell(config.grid)])
            wide = graph.op("Gather", mixed, graph.constant(places), axis=1)
            x = graph.op("Add", self.rows, graph.reshape(wide, -1, config.embed_dim))
        return layers.feed_forward(x, name, eps)

    def fuse(self) -> None:
        config, graph = self.config, self.graph
        width, size = config.embed_dim, map_size(graph, *config.grid)
        with graph.scope("fuse"):
            low_first, low = self.split(self.low, 1 + config.num_patches // 4)
            low = graph.op("Gather", low, graph.constant(low_cell(config.grid)), axis=1)
            x = to_map(graph, graph.reshape(low, -1, width), size, width)
            gain = self.convolve(self.convolve(x, "lka.conv0"), "lka.conv_spatial")
            gain = self.convolve(gain, "lka.conv1")
            high = to_map(graph, self.map(), size, width)
            x = graph.op("Add", high, graph.op("Mul", x, gain))
            x = graph.op("Add", x, self.convolve(x, "peg.proj"))
            first, _ = self.split(self.rows, config.num_tokens)
            shares = (graph.number(share) for share in config.settings.class_shares)
            parts = [graph.op("Mul", v, s) for v, s in zip((first, low_first), shares, strict=True)]
            patches = graph.reshape(to_rows(graph, x, width), -1, config.num_patches, width)
            both = graph.op("Concat", graph.op("Add", *parts), patches, axis=1)
            self.rows = graph.reshape(both, -1, width)

    def convolve(self, x: str, name: str) -> str:
        layers = self.writer.layers
        side, dilation = CONVOLUTIONS.get(name, (1, 1))
        given = {f"{name}.{part}": layers.weights[f"{name}.{part}"] for part in ("weight", "bias")}
        return map_op(
            layers,
            "Conv",
            x,
            given,
            kernel_shape=(side, side),
            pads=(side // 2 * dilation,) * 4,
            dilations=(dilation, dilation),
            group=self.config.embed_dim if name in CONVOLUTIONS else 1,
        )


def low_cell(grid: tuple[int, int]) -> np.ndarray:
    """Of each token in raster order, the one of the low group that it lies in `[N]`."""
    rows, columns = np.indices(grid) // 2
    return np.asarray(rows * (grid[1] // 2) + columns).reshape(-1)


def low_codes(
    config: ModelConfig, weights: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The low class token `[1, 1, C]`, and what is added to the means of patches `[1, N / 4, C]`.

    Patches come with the high group's positions, whose means are taken off again.
    """
    table = interpolate_positions(weights["pos_embed"], 1, config.native_grid, config.grid)
    rows, columns = half(config.grid)
    means = table[:, 1:].reshape(1, rows, 2, columns, 2, -1).mean((2, 4), np.float32)
    own = interpolate_positions(
        weights["low_pos_embed"], 1, half(config.native_grid), half(config.grid)
    )
    codes = own[:, 1:] - means.reshape(1, rows * columns, -1)
    return weights["low_cls_token"] + own[:, :1], codes
