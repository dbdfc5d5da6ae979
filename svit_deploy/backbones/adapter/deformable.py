"""Multi-scale deformable attention (Zhu et al., Deformable DETR, ICLR 2021) in standard operators.

Each query samples a few points of each map: GridSample over all points of all queries at once,
then a weighted sum over the points. Places and samples are float32 in every precision, as in the
official operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from svit_deploy.graph.builder import FLOAT, GraphBuilder
from svit_deploy.graph.layers import Layers
from svit_deploy.graph.maps import (
    Dim,
    MapSize,
    centres,
    linear_on_columns,
    to_columns,
    vector,
)

NORM_EPS = 1e-6
OFFSETS, SHARES = "sampling_offsets", "attention_weights"


@dataclass(frozen=True)
class Geometry:
    """Which maps attend to which.

    Attributes:
        queries, sources: how many tokens each side has per image.
        maps: the sizes of the maps that make up the source, in their order.
        centres: `[queries, 2]`, the queries' own places in [-1, 1].
        pixel: `[levels * points, 2, 1]`, width and height of a pixel there, for each sample.
    """

    queries: Dim
    sources: Dim
    maps: tuple[MapSize, ...]
    centres: str
    pixel: str


def make_geometry(
    graph: GraphBuilder,
    query_maps: Sequence[MapSize],
    queries: Dim,
    source_maps: Sequence[MapSize],
    sources: Dim,
    points: int,
) -> Geometry:
    places = [centres(graph, size) for size in query_maps]
    joined = places[0] if len(places) == 1 else graph.op("Concat", *places, axis=0)
    sides = vector(graph, [side for size in source_maps for side in (size.columns, size.rows)])
    sides = graph.op("Cast", sides, to=FLOAT)
    pixels = graph.op("Div", graph.constant(2, np.float32), sides)
    pixels = graph.reshape(pixels, len(source_maps), 2, 1)
    levels = graph.constant(np.repeat(np.arange(len(source_maps)), points))
    pixel = graph.op("Gather", pixels, levels, axis=0)
    return Geometry(queries, sources, tuple(source_maps), joined, pixel)


@dataclass(frozen=True)
class DeformableAttention:
    """Writes deformable attention with its pre-norms and projections.

    Attributes:
        layers: where the weights are.
        heads, points: of every attention; `width` is the channels of its values.
    """

    layers: Layers
    heads: int
    points: int
    width: int

    def __call__(
        self,
        queries: str,
        source: str,
        name: str,
        geometry: Geometry,
        gain: np.ndarray | None = None,
    ) -> str:
        """Rows `[B * Q, C]` and `[B * S, C]` -> rows `[B * Q, C]`.

        Args:
            gain: `[C]`, what the result is multiplied by.
        """
        graph, layers = self.layers.graph, self.layers
        query = layers.layer_norm(queries, f"{name}.query_norm", NORM_EPS)
        normed = graph.to_precision(layers.layer_norm(source, f"{name}.feat_norm", NORM_EPS))
        values = self.values(normed, f"{name}.attn.value_proj", geometry)
        places, shares = self.samples(query, f"{name}.attn", geometry)
        parts = []
        for value, place, share in zip(values, places, shares, strict=True):
            sampled = graph.op(
                "GridSample", value, place, mode="linear", padding_mode="zeros", align_corners=0
            )  # [B * heads, D, points, Q]
            weighted = graph.op("Mul", sampled, share)
            parts.append(graph.op("ReduceSum", weighted, graph.constant([2]), keepdims=0))
        total = parts[0]
        for part in parts[1:]:
            total = graph.op("Add", total, part)
        total = graph.reshape(total, -1, self.width, geometry.queries)
        return self.project(graph.to_precision(total), f"{name}.attn.output_proj", gain)

    def values(self, source: str, name: str, geometry: Geometry) -> list[str]:
        """One map `[B * heads, D, rows, columns]` per level."""
        graph, layers = self.layers.graph, self.layers
        weight, bias = (layers.weights[f"{name}.{part}"] for part in ("weight", "bias"))
        columns = to_columns(graph, source, geometry.sources, weight.shape[1])
        value = graph.to_float32(linear_on_columns(layers, columns, name, weight, bias))
        cells = [size.cells for size in geometry.maps]
        return [
            graph.reshape(part, -1, self.width // self.heads, size.rows, size.columns)
            for part, size in zip(split(graph, value, cells, axis=2), geometry.maps, strict=True)
        ]

    def samples(self, query: str, name: str, geometry: Geometry) -> tuple[list[str], list[str]]:
        """Where each level is sampled, and the weight of each sample.

        Returns:
            `[B * heads, points, Q, 2]` and `[B * heads, 1, points, Q]` per level.
        """
        graph, layers, queries = self.layers.graph, self.layers, geometry.queries
        weight, bias = (
            np.concatenate(
                [layers.weights[f"{name}.{layer}.{part}"] for layer in (OFFSETS, SHARES)]
            )
            for part in ("weight", "bias")
        )
        columns = to_columns(graph, query, queries, weight.shape[1])
        columns = linear_on_columns(layers, columns, f"{name}.samples", weight, bias, exact=True)
        samples = len(geometry.maps) * self.points
        sizes = [self.heads * samples * 2, self.heads * samples]
        offsets, share = split(graph, columns, sizes, axis=1)
        offsets = graph.reshape(offsets, -1, samples, 2, queries)
        offsets = graph.op("Mul", offsets, geometry.pixel)
        offsets = graph.op("Transpose", offsets, perm=(0, 1, 3, 2))
        places = graph.op("Add", offsets, geometry.centres)
        share = graph.op("Softmax", graph.reshape(share, -1, 1, samples, queries), axis=2)
        points = [self.points] * len(geometry.maps)
        return split(graph, places, points, axis=1), split(graph, share, points, axis=2)

    def project(self, columns: str, name: str, gain: np.ndarray | None) -> str:
        """The output's projection: `[B, D * heads, Q]` -> rows `[B * Q, C]`."""
        layers, weights = self.layers, self.layers.weights
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        if gain is not None:
            name, weight, bias = f"{name}.gained", weight * gain[:, None], bias * gain
        columns = linear_on_columns(layers, columns, name, weight, bias)
        rows = layers.graph.op("Transpose", columns, perm=(0, 2, 1))
        return layers.graph.reshape(rows, -1, len(weight))


def split(graph: GraphBuilder, value: str, lengths: Sequence[Dim], axis: int) -> list[str]:
    """Parts of the given lengths along an axis."""
    if len(lengths) == 1:
        return [value]
    sizes = vector(graph, lengths)
    return list(graph.ops("Split", value, sizes, outputs=len(lengths), axis=axis))
