"""Multi-scale deformable attention (Zhu et al., Deformable DETR, ICLR 2021) in standard operators.

Each query samples a few points of each map: GridSample over all points of all queries at once,
then a weighted sum over the points. Places and samples are float32 in every precision, as in the
official operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from svit_deploy.detection.graph.maps import Dim, MapSize, centres, vector
from svit_deploy.export.builder import FLOAT, GraphBuilder
from svit_deploy.export.layers import Layers

NORM_EPS = 1e-6


@dataclass(frozen=True)
class Geometry:
    """Which maps attend to which.

    Attributes:
        queries, sources: how many tokens each side has per image.
        maps: the sizes of the maps that make up the source, in their order.
        centres: `[queries, 2]`, the queries' own places in [-1, 1].
        pixel: `[levels * points, 1, 2]`, the length of a pixel there, for each sample.
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
    pixels = graph.reshape(pixels, len(source_maps), 1, 2)
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
        normed = graph.narrow(layers.layer_norm(source, f"{name}.feat_norm", NORM_EPS))
        values = self.values(normed, name, geometry)
        places = self.places(query, name, geometry)
        shares = self.shares(query, name, geometry)
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
        rows = graph.reshape(graph.op("Transpose", total, perm=(0, 2, 1)), -1, self.width)
        return self.project(graph.narrow(rows), f"{name}.attn.output_proj", gain)

    def values(self, source: str, name: str, geometry: Geometry) -> list[str]:
        """One map `[B * heads, D, rows, columns]` per level."""
        graph = self.layers.graph
        value = graph.widen(self.layers.linear(source, f"{name}.attn.value_proj"))
        value = graph.reshape(value, -1, geometry.sources, self.width)
        value = graph.op("Transpose", value, perm=(0, 2, 1))
        cells = [size.cells for size in geometry.maps]
        return [
            graph.reshape(part, -1, self.width // self.heads, size.rows, size.columns)
            for part, size in zip(split(graph, value, cells, axis=2), geometry.maps, strict=True)
        ]

    def places(self, query: str, name: str, geometry: Geometry) -> list[str]:
        """Where to sample, one `[B * heads, points, Q, 2]` per level."""
        graph = self.layers.graph
        samples = len(geometry.maps) * self.points
        offsets = self.layers.exact_linear(query, f"{name}.attn.sampling_offsets")
        offsets = graph.reshape(offsets, -1, geometry.queries, self.heads, samples, 2)
        offsets = graph.op("Transpose", offsets, perm=(0, 2, 3, 1, 4))
        offsets = graph.reshape(offsets, -1, samples, geometry.queries, 2)
        places = graph.op("Add", graph.op("Mul", offsets, geometry.pixel), geometry.centres)
        return split(graph, places, [self.points] * len(geometry.maps), axis=1)

    def shares(self, query: str, name: str, geometry: Geometry) -> list[str]:
        """The weight of each sample, one `[B * heads, 1, points, Q]` per level."""
        graph = self.layers.graph
        samples = len(geometry.maps) * self.points
        share = self.layers.exact_linear(query, f"{name}.attn.attention_weights")
        share = graph.reshape(share, -1, geometry.queries, self.heads, samples)
        share = graph.op("Transpose", graph.op("Softmax", share, axis=-1), perm=(0, 2, 3, 1))
        share = graph.reshape(share, -1, 1, samples, geometry.queries)
        return split(graph, share, [self.points] * len(geometry.maps), axis=2)

    def project(self, rows: str, name: str, gain: np.ndarray | None) -> str:
        if gain is None:
            return self.layers.linear(rows, name)
        layers, weights = self.layers, self.layers.weights
        weight = weights[f"{name}.weight"] * gain[:, None]
        weight = layers.narrow_weight(f"{name}.gained.weight", weight)
        bias = layers.narrow_weight(f"{name}.gained.bias", weights[f"{name}.bias"] * gain)
        return layers.graph.op("Gemm", rows, weight, bias, transB=1)


def split(graph: GraphBuilder, value: str, lengths: Sequence[Dim], axis: int) -> list[str]:
    """Parts of the given lengths along an axis."""
    if len(lengths) == 1:
        return [value]
    sizes = vector(graph, lengths)
    return list(graph.ops("Split", value, sizes, outputs=len(lengths), axis=axis))
