"""The convolutional branch of a ViT-Adapter: maps of strides 4 to 32 beside the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from svit_deploy.backbones.adapter.deformable import NORM_EPS, split
from svit_deploy.graph.builder import GraphBuilder
from svit_deploy.graph.layers import Layers
from svit_deploy.graph.maps import (
    Dim,
    MapSize,
    conv,
    linear_on_columns,
    map_op,
    to_columns,
    to_map,
    to_rows,
)
from svit_deploy.model.config import ModelConfig

BATCH_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Pyramid:
    """Writes the branch's own layers.

    Its maps of strides 8, 16 and 32 are kept as rows `[B * 21N/4, C]`, image after image, finest
    map first.

    Attributes:
        maps: their sizes.
        length: their cells together, 21N/4.
    """

    layers: Layers
    config: ModelConfig
    maps: tuple[MapSize, ...]
    length: Dim

    @property
    def graph(self) -> GraphBuilder:
        return self.layers.graph

    def begin(self, images: str) -> tuple[str, str]:
        """From images `[B, 3, H, W]` to the map of stride 4, and the rows of the others.

        The finest map leaves with the last batch norm and the bias of `up` folded in already.
        """
        config, graph, layers = self.config, self.graph, self.layers
        weights, x = layers.weights, images
        for i, stride in ((0, 2), (3, 1), (6, 1)):
            x = self.conv_norm_relu(x, f"spm.stem.{i}", f"spm.stem.{i + 1}", stride)
        pool: dict[str, Any] = {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}
        maps = [map_op(layers, "MaxPool", x, {}, **pool)]
        for i in (2, 3, 4):
            maps.append(self.conv_norm_relu(maps[-1], f"spm.conv{i}.0", f"spm.conv{i}.1", 2))
        scale, shift = self.affine("norm1")
        bias = (weights["spm.fc1.bias"] + weights["up.bias"]) * scale + shift
        finest = conv(
            layers,
            maps[0],
            "spm.fc1.normed",
            weights["spm.fc1.weight"] * scale[:, None, None, None],
            bias,
        )
        parts = []
        for level, (feature, size) in enumerate(zip(maps[1:], self.maps, strict=True)):
            weight, bias = (weights[f"spm.fc{level + 2}.{p}"] for p in ("weight", "bias"))
            rows = to_rows(graph, feature, weight.shape[1])
            name = f"spm.fc{level + 2}.levelled"
            rows = graph.op(
                "Gemm",
                rows,
                layers.cast_weight(f"{name}.weight", weight[:, :, 0, 0]),
                layers.cast_weight(f"{name}.bias", bias + weights["level_embed"][level]),
                transB=1,
            )
            parts.append(graph.reshape(rows, -1, size.cells, config.embed_dim))
        return finest, graph.reshape(graph.op("Concat", *parts, axis=1), -1, config.embed_dim)

    def feed_forward(self, c: str, name: str) -> str:
        """An extractor's network on pyramid rows, a 3x3 convolution inside."""
        graph, layers, hidden = self.graph, self.layers, self.config.backbone.ffn_dim
        normed = graph.to_precision(layers.layer_norm(c, f"{name}.ffn_norm", NORM_EPS))
        columns = to_columns(graph, normed, self.length, self.config.embed_dim)
        weight, bias = (layers.weights[f"{name}.ffn.fc1.{p}"] for p in ("weight", "bias"))
        columns = linear_on_columns(layers, columns, f"{name}.ffn.fc1", weight, bias)
        parts = []
        for part, size in zip(self.split(columns, hidden), self.maps, strict=True):
            weight, bias = (
                layers.weights[f"{name}.ffn.dwconv.dwconv.{p}"] for p in ("weight", "bias")
            )
            mixed = conv(layers, part, f"{name}.ffn.dwconv", weight, bias, groups=hidden)
            parts.append(graph.reshape(to_rows(graph, mixed, hidden), -1, size.cells, hidden))
        rows = graph.reshape(graph.op("Concat", *parts, axis=1), -1, hidden)
        return layers.linear(graph.op("Gelu", rows), f"{name}.ffn.fc2")

    def split(self, columns: str, channels: int) -> list[str]:
        """`[B, channels, 21N/4]` -> maps `[B, channels, h, w]` of strides 8, 16, 32."""
        graph = self.graph
        parts = split(graph, columns, [size.cells for size in self.maps], axis=2)
        return [
            graph.reshape(part, -1, channels, size.rows, size.columns)
            for part, size in zip(parts, self.maps, strict=True)
        ]

    def join(self, finest: str, c: str, x: str) -> list[str]:
        """Both branches added and normed: maps of strides 4, 8, 16, 32."""
        config, graph, layers = self.config, self.graph, self.layers
        columns = to_columns(graph, c, self.length, config.embed_dim)
        maps = self.split(columns, config.embed_dim)
        tokens = to_map(graph, x, self.maps[1], config.embed_dim)

        def channelwise(op: str, value: str, array: np.ndarray) -> str:
            return graph.op(op, value, graph.number(array[:, None, None]))

        def enlarge(value: str, factor: int) -> str:
            scales = graph.constant([1, 1, factor, factor], np.float32)
            return graph.op("Resize", value, "", scales, mode="linear")

        scale, _ = self.affine("norm1")
        twice: dict[str, Any] = {"kernel_shape": (2, 2), "strides": (2, 2)}
        weight = layers.weights["up.weight"] * scale[:, None, None]
        up = map_op(layers, "ConvTranspose", maps[0], {"up.normed.weight": weight}, **twice)
        features = [
            graph.op(
                "Add", graph.op("Add", up, finest), enlarge(channelwise("Mul", tokens, scale), 4)
            )
        ]
        halved = map_op(layers, "AveragePool", tokens, {}, **twice)
        for i, (feature, resized) in enumerate(
            zip(maps, (enlarge(tokens, 2), tokens, halved), strict=True), 2
        ):
            scale, shift = self.affine(f"norm{i}")
            joined = channelwise("Mul", graph.op("Add", feature, resized), scale)
            features.append(channelwise("Add", joined, shift))
        return features

    def conv_norm_relu(self, x: str, name: str, norm: str, stride: int) -> str:
        """The batch norm folded into the convolution."""
        scale, shift = self.affine(norm)
        weight = self.layers.weights[f"{name}.weight"] * scale[:, None, None, None]
        return self.graph.op("Relu", conv(self.layers, x, f"{name}.normed", weight, shift, stride))

    def affine(self, norm: str) -> tuple[np.ndarray, np.ndarray]:
        """A batch norm as scale and shift per channel, float32 `[C]` each."""
        mean, var, weight, bias = (
            self.layers.weights[f"{norm}.{part}"].astype(np.float64)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        scale = weight / np.sqrt(var + BATCH_NORM_EPS)
        return scale.astype(np.float32), (bias - mean * scale).astype(np.float32)
