"""ConvNeXt's ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from svit_deploy.backbones.convnext.settings import ConvNextStage, places
from svit_deploy.backbones.staged import StagedGraph
from svit_deploy.graph.maps import conv, map_op, map_size, to_map, to_rows
from svit_deploy.names import EMBEDDING

KINDS = ("weight", "bias")


class ConvNextGraph(StagedGraph):
    """Maps are rows `[B * tokens, C]` between the blocks; layer scales are in the weights."""

    def fold(self, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """A convolution of single places is a linear layer."""
        return {
            name: array[..., 0, 0] if array.shape[2:] == (1, 1) else array
            for name, array in weights.items()
        }

    def places(self) -> list[tuple[ConvNextStage, int]]:
        return places(self.config)

    @property
    def eps(self) -> float:
        return self.config.block_eps

    def embed(self, images: str) -> str:
        graph, layers, stage = self.graph, self.layers, self.places()[0][0]
        with graph.scope("embedding"):
            x = self.shorten(graph.to_precision(images), "downsample_layers.0.0")
            rows = to_rows(graph, x, stage.width)
            rows = graph.to_precision(layers.layer_norm(rows, "downsample_layers.0.1", self.eps))
        return graph.rename(rows, EMBEDDING)

    def shrink(self, x: str, stage: ConvNextStage) -> str:
        graph, name = self.graph, f"downsample_layers.{stage.index}"
        with graph.scope("shrink"):
            x = graph.to_precision(self.layers.layer_norm(x, f"{name}.0", self.eps))
            size = map_size(graph, 2 * stage.rows, 2 * stage.columns)
            x = self.shorten(to_map(graph, x, size, stage.width // 2), f"{name}.1")
            return to_rows(graph, x, stage.width)

    def shorten(self, x: str, name: str) -> str:
        """A convolution of neighbours that do not overlap."""
        weights = {f"{name}.{part}": self.layers.weights[f"{name}.{part}"] for part in KINDS}
        side = weights[f"{name}.weight"].shape[2]
        how: dict[str, Any] = {"kernel_shape": (side, side), "strides": (side, side)}
        return map_op(self.layers, "Conv", x, weights, **how)

    def mix(self, x: str, block: int) -> tuple[str, str]:
        graph, name, (stage, _) = self.graph, self.name_of(block), self.places()[block]
        kernel, bias = (self.layers.weights[f"{name}.dwconv.{part}"] for part in KINDS)
        with graph.scope("dwconv"):
            size = map_size(graph, stage.rows, stage.columns)
            y = to_map(graph, x, size, stage.width)
            y = conv(self.layers, y, f"{name}.dwconv", kernel, bias, groups=stage.width)
            return x, to_rows(graph, y, stage.width)

    def feed(self, x: str, block: int) -> str:
        graph, layers, name = self.graph, self.layers, self.name_of(block)
        normed = graph.to_precision(layers.layer_norm(x, f"{name}.norm", self.eps))
        hidden = graph.op("Gelu", layers.linear(normed, f"{name}.pwconv1"))
        return layers.scaled_linear(hidden, f"{name}.pwconv2", f"{name}.gamma")
