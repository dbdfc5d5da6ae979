"""ViT-Adapter whose ViT attends inside windows, but for the last block of each interaction.

uzh-rpg/svit @ d2472c13 (`vit-window_attn-adapter-{t,s}-3x`) and czczup/ViT-Adapter have the same
blocks, with layer scale. Zeros stand behind a map that no window divides: they are put there after
the linear layer, so that keys and values are zeros without a bias, and they are not masked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from svit_deploy.backbones.adapter import Adapter, AdapterDims
from svit_deploy.backbones.adapter.graph import AdapterGraph
from svit_deploy.backbones.adapter.sizes import AdapterSettings
from svit_deploy.errors import InputError
from svit_deploy.graph.layers import QKV, attention
from svit_deploy.graph.maps import Dim, product, quotient, total, vector
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.keys import Shape

if TYPE_CHECKING:
    from svit_deploy.backbones.reference import BackboneReference

WINDOW = 14


@dataclass(frozen=True, kw_only=True)
class WindowedSettings(AdapterSettings):
    """
    Attributes:
        windows: of each block the side of its windows in tokens, 0 for attention to all; by
            default 14, and 0 for the last block of each interaction.
    """

    windows: tuple[int, ...] = ()


class WindowedGraph(AdapterGraph):
    def fold(self, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Layer scales multiplied into the layers in front of them."""
        folded = dict(weights)
        for block in range(self.config.depth):
            for layer, scale in (("attn.proj", "gamma1"), ("mlp.fc2", "gamma2")):
                gain = weights[f"blocks.{block}.{scale}"]
                name = f"blocks.{block}.{layer}"
                folded[f"{name}.weight"] = weights[f"{name}.weight"] * gain[:, None]
                folded[f"{name}.bias"] = weights[f"{name}.bias"] * gain
        return folded

    def plain_block(self, rows: str, block: int, count: Dim) -> str:
        side = self.config.settings.windows[block]
        if not side:
            return super().plain_block(rows, block, count)
        return self.block(rows, block, lambda qkv: self.attend_in_windows(qkv, side))

    def attend_in_windows(self, qkv: QKV, side: int) -> str:
        """Attention of rows `[B * N, C]` inside windows of `side` x `side` tokens."""
        graph, config, places = self.graph, self.config, self._maps[1]
        width, (rows, columns) = config.embed_dim, (places.rows, places.columns)
        across, down = (quotient(graph, total(graph, n, side - 1), side) for n in (columns, rows))
        height, length = product(graph, down, side), product(graph, across, side)
        beyond = (self.rest(height, rows), self.rest(length, columns))

        def split(x: str) -> str:
            """-> `[B * windows * side², C]`"""
            x = graph.reshape(x, -1, rows, columns, width)
            if beyond != (0, 0):
                pads = vector(graph, (0, 0, 0, 0, 0, *beyond, 0))
                x = graph.to_precision(graph.op("Pad", graph.to_float32(x), pads))
            x = graph.reshape(x, -1, down, side, across, side, width)
            return graph.reshape(graph.op("Transpose", x, perm=(0, 1, 3, 2, 4, 5)), -1, width)

        heads, depth = config.num_heads, width // config.num_heads
        x = attention(graph, [split(part) for part in qkv], side * side, heads, depth)
        x = graph.reshape(x, -1, down, across, side, side, width)
        x = graph.op("Transpose", x, perm=(0, 1, 3, 2, 4, 5))
        x = graph.reshape(x, -1, height, length, width)
        if beyond != (0, 0):
            ends = vector(graph, (rows, columns))
            x = graph.op("Slice", x, graph.constant([0, 0]), ends, graph.constant([1, 2]))
        return graph.reshape(x, -1, width)

    def rest(self, whole: Dim, part: Dim) -> Dim:
        if isinstance(whole, int) and isinstance(part, int):
            return whole - part
        return self.graph.op("Sub", self.graph.vector(whole), self.graph.vector(part))


class WindowedAdapter(Adapter):
    graph = WindowedGraph
    settings = WindowedSettings

    def reference(self) -> type[BackboneReference]:
        from svit_deploy.backbones.adapter.windowed_reference import WindowedReference

        return WindowedReference

    def matches(self, keys: Collection[str]) -> bool:
        return super().matches(keys) and "blocks.0.gamma1" in keys

    def shapes(self, dims: AdapterDims) -> dict[str, Shape]:
        scales = [f"blocks.{block}.gamma{half}" for block in range(dims.depth) for half in (1, 2)]
        return super().shapes(dims) | dict.fromkeys(scales, (dims.embed_dim,))

    def random(self, name: str, shape: Shape, rng: np.random.Generator) -> np.ndarray | None:
        if name.endswith(("gamma1", "gamma2")):
            return 1 + 0.2 * rng.standard_normal(shape)
        return super().random(name, shape, rng)

    def settle(self, settings: Any, dims: AdapterDims) -> Any:
        settings = super().settle(settings, dims)
        if settings.windows:
            return settings
        last = {end - 1 for end in accumulate(settings.interaction_blocks)}
        windows = tuple(0 if block in last else WINDOW for block in range(dims.depth))
        return replace(settings, windows=windows)

    def check(self, config: ModelConfig) -> None:
        super().check(config)
        windows = config.settings.windows
        if len(windows) != config.depth or not all(0 <= side <= 256 for side in windows):
            raise InputError(
                f"windows {list(windows)} are not one side from 0 to 256 for each of "
                f"{config.depth} blocks",
                "give the side of each block's windows in tokens, 0 for attention to all",
            )
