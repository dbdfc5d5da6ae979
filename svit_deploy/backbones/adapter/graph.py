"""A ViT-Adapter backbone as an ONNX graph."""

from __future__ import annotations

import numpy as np

from svit_deploy.backbones.adapter.deformable import (
    DeformableAttention,
    Geometry,
    make_geometry,
)
from svit_deploy.backbones.adapter.pyramid import Pyramid
from svit_deploy.backbones.adapter.sizes import PYRAMID, extractor_name, injector_name
from svit_deploy.backbones.tokens import GraphTokens
from svit_deploy.backbones.writer import GraphWriter
from svit_deploy.graph.maps import (
    Dim,
    MapSize,
    cubic_matrix,
    map_op,
    map_size,
    product,
    quotient,
    total,
)
from svit_deploy.model.positions import interpolate_positions
from svit_deploy.names import EMBEDDING


class AdapterGraph(GraphWriter):
    """Writes one backbone. One image size is baked in, a range leaves height and width free."""

    _maps: tuple[MapSize, ...]
    _tokens: Dim
    _pyramid: Pyramid

    @property
    def num_tokens(self) -> Dim:
        return self._tokens

    @property
    def mask_width(self) -> Dim:
        """With the tokens that the method adds."""
        added = self.method.mask_width(self.config) - self.config.num_tokens
        return total(self.graph, self.num_tokens, added)

    def run(self, images: str) -> tuple[list[str], GraphTokens]:
        """The four feature maps `[B, C, h, w]`, finest first, and the tokens behind the blocks."""
        config, graph = self.config, self.graph
        self.measure(images)
        with graph.scope("pyramid"):
            finest, c = self._pyramid.begin(graph.to_precision(images))
        c = graph.rename(c, PYRAMID)
        tokens = self.method.graph(self, self.embed(images))
        settings, sizes = config.settings, config.backbone
        attention = DeformableAttention(
            self.layers, settings.deform_heads, sizes.deform_points, sizes.deform_dim
        )
        with graph.scope("geometry"):
            maps, length, points = self._maps, self._pyramid.length, sizes.deform_points
            cells = maps[1].cells
            inward = make_geometry(graph, maps[1:2], cells, maps, length, points)
            outward = make_geometry(graph, maps, length, maps[1:2], cells, points)
        first = extractors = 0
        for k, count in enumerate(settings.interaction_blocks):
            name = f"interactions.{k}"
            with graph.scope(f"injector_{k}"):
                gain, x = self.layers.weights[f"{name}.injector.gamma"], tokens.map()
                found = attention(x, c, f"{name}.injector", inward, gain)
                x = graph.rename(graph.op("Add", x, found), injector_name(k))
                tokens.put_map(x)
            for block in range(first, first + count):
                tokens.step(block)
            first += count
            extra = sizes.extra_extractors if first == config.depth else 0
            for part in ("extractor", *(f"extra_extractors.{e}" for e in range(extra))):
                with graph.scope(f"extractor_{extractors}"):
                    c = self.extract(c, tokens.map(), f"{name}.{part}", attention, outward)
                c = graph.rename(c, extractor_name(extractors))
                extractors += 1
        with graph.scope("features"):
            return self._pyramid.join(finest, c, tokens.map()), tokens

    def measure(self, images: str) -> None:
        """Sets the sizes of the maps of strides 8, 16 and 32, and the token counts."""
        graph, config = self.graph, self.config
        rows: Dim
        columns: Dim
        if self.sizes.fixed:
            rows, columns = config.grid
        else:
            patch = graph.vector(config.patch_size)
            rows, columns = (graph.op("Div", graph.shape(images, axis), patch) for axis in (2, 3))
        self._maps = (
            map_size(graph, product(graph, rows, 2), product(graph, columns, 2)),
            map_size(graph, rows, columns),
            map_size(graph, quotient(graph, rows, 2), quotient(graph, columns, 2)),
        )
        cells = self._maps[1].cells
        length = quotient(graph, product(graph, cells, 21), 4)
        self._pyramid = Pyramid(self.layers, config, self._maps, length)
        self._tokens = total(graph, cells, config.prefix_tokens)

    def embed(self, images: str) -> str:
        """Patches and positions: `[B, 3, H, W]` -> rows `[B * S, C]`, a class token first, if any.

        The class token's position is that of the table's first row, as it is.
        """
        config, graph = self.config, self.graph
        patch, width = config.patch_size, config.embed_dim
        with graph.scope("embedding"):
            keys = ("patch_embed.proj.weight", "patch_embed.proj.bias")
            weights = {key: self.layers.weights[key] for key in keys}
            sides = {"kernel_shape": (patch, patch), "strides": (patch, patch)}
            patches = map_op(self.layers, "Conv", graph.to_precision(images), weights, **sides)
            tokens = graph.reshape(patches, -1, width, self._maps[1].cells)
            tokens = graph.op("Transpose", tokens, perm=(0, 2, 1))
            tokens = graph.op("Add", tokens, self.positions())
            if config.prefix_tokens:
                tokens = graph.op("Concat", self.class_tokens(images), tokens, axis=1)
            rows = graph.reshape(tokens, -1, width)
        return graph.rename(rows, EMBEDDING)

    def class_tokens(self, images: str) -> str:
        """A class token for each image `[B, 1, C]`."""
        graph, weights = self.graph, self.layers.weights
        first = weights["cls_token"] + weights["pos_embed"][:, :1]
        batch = graph.op("Concat", graph.shape(images, 0), graph.constant([1, 1]), axis=0)
        return graph.op("Expand", self.layers.cast_weight("class_token", first), batch)

    def positions(self) -> str:
        """The position table at the images' size, `[N, C]`, without its class row."""
        config, graph = self.config, self.graph
        table, width, token_map = self.layers.weights["pos_embed"], config.embed_dim, self._maps[1]
        if self.sizes.fixed:
            baked = interpolate_positions(table, 1, config.native_grid, config.grid)
            return self.layers.cast_weight("positions", baked[0, 1:])
        height, across = config.native_grid
        cells = table[0, 1:].reshape(height, across, width)
        padded = np.pad(cells, ((2, 2), (2, 2), (0, 0)), mode="edge")
        stored = graph.weight("padded_positions", padded.reshape(height + 4, -1))
        rows = graph.op("MatMul", cubic_matrix(graph, height, token_map.rows), stored)
        rows = graph.reshape(rows, -1, across + 4, width)
        resized = graph.op("MatMul", cubic_matrix(graph, across, token_map.columns), rows)
        return graph.to_precision(graph.reshape(resized, -1, width))

    def extract(
        self, c: str, x: str, name: str, attention: DeformableAttention, geometry: Geometry
    ) -> str:
        """Adds what the pyramid samples from the tokens, then its feed-forward network."""
        c = self.graph.op("Add", c, attention(c, x, name, geometry))
        with self.graph.scope("ffn"):
            return self.graph.op("Add", c, self._pyramid.feed_forward(c, name))
