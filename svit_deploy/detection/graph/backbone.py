"""A (S)ViT-Adapter backbone as an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from svit_deploy.config import TokenMode
from svit_deploy.detection.config import DEFAULT_SIZES, STRIDES, AdapterConfig, SizeRange
from svit_deploy.detection.graph.deformable import (
    DeformableAttention,
    Geometry,
    make_geometry,
)
from svit_deploy.detection.graph.maps import (
    Dim,
    MapSize,
    cubic_matrix,
    map_op,
    map_size,
    product,
    quotient,
)
from svit_deploy.detection.graph.pyramid import Pyramid
from svit_deploy.export.builder import FLOAT
from svit_deploy.export.names import EMBEDDING, INPUT, block_name, margin_name
from svit_deploy.export.tokens import Decided, TokenGrid, attend_to_all
from svit_deploy.export.vit import VitGraph
from svit_deploy.models.positions import interpolate_positions

PYRAMID = "pyramid"
"""The graph's value `[B * 21N/4, C]`: the convolutional branch's tokens, finest map first."""
RATIO_UNIT = 10_000


def injector_name(k: int) -> str:
    """The graph's value `[B * N, C]` after an injector."""
    return f"injector_{k}.out"


def extractor_name(k: int) -> str:
    """The graph's value `[B * 21N/4, C]` after an extractor; extra ones count on."""
    return f"extractor_{k}.out"


def feature_name(stride: int) -> str:
    """The graph's output `[B, C, H / stride, W / stride]`."""
    return f"stride_{stride}"


def ratio_units(ratio: float) -> int:
    """A budget's share of an image's tokens, as the graph counts it."""
    return round(ratio * RATIO_UNIT)


def rows_within(ratio: float, tokens: int) -> int:
    """Rows that a budget's share lets through of `tokens`: rounded up, as the graph does."""
    return -(-tokens * ratio_units(ratio) // RATIO_UNIT)


@dataclass
class AdapterGraph(VitGraph):
    """Writes one backbone in one token mode.

    Args:
        shares: in `budget` mode, the share of an image's tokens that each gate may keep.
        sizes: image sizes to run. One size is baked in, a range leaves height and width free.
        single: run one image at a time only; spares `dynamic` the hiding of empty slots.
    """

    shares: Sequence[float] = ()
    sizes: SizeRange = DEFAULT_SIZES
    single: bool = False
    _grid: TokenGrid = field(init=False)
    _maps: tuple[MapSize, ...] = field(init=False)
    _pyramid: Pyramid = field(init=False)

    @property
    def config(self) -> AdapterConfig:
        assert isinstance(self.model.config, AdapterConfig)
        return self.model.config

    @property
    def grid(self) -> TokenGrid:
        return self._grid

    @property
    def columns(self) -> Dim:
        return self.grid.num_tokens

    def budget_rows(self, gate: int) -> Dim:
        graph = self.graph
        units, tokens = ratio_units(self.shares[gate]), self.grid.num_tokens
        if isinstance(tokens, int):
            return rows_within(self.shares[gate], tokens)
        parts = graph.op("Mul", tokens, graph.vector(units))
        return quotient(graph, graph.op("Add", parts, graph.vector(RATIO_UNIT - 1)), RATIO_UNIT)

    def build(self) -> onnx.ModelProto:
        """`images [batch, 3, H, W]` -> four feature maps, and what the gates decided."""
        features, decided = self.backbone(self.image_input())
        for stride, feature in zip(STRIDES, map(self.graph.widen, features), strict=True):
            shape = (self.batch, self.config.embed_dim, *self.map_shape(stride))
            self.graph.output(self.graph.rename(feature, feature_name(stride)), FLOAT, shape)
        if decided and self.gate_outputs:
            self.add_gate_outputs(decided)
        return self.graph.model()

    def image_input(self) -> str:
        return self.graph.input(INPUT, FLOAT, (self.batch, 3, *self.map_shape(1)))

    @property
    def batch(self) -> int | str:
        return 1 if self.single else "batch"

    def map_shape(self, stride: int) -> tuple[int | str, int | str]:
        """Height and width of a map, for the declaration of an input or output."""
        if self.sizes.fixed:
            return self.sizes.opt[0] // stride, self.sizes.opt[1] // stride
        return ("height", "width") if stride == 1 else (f"height/{stride}", f"width/{stride}")

    def backbone(self, images: str) -> tuple[list[str], list[Decided]]:
        """The four feature maps, finest first, and what each gate decided."""
        config, graph = self.config, self.graph
        self.measure(images)
        with graph.scope("pyramid"):
            finest, c = self._pyramid.begin(graph.narrow(images))
        c = graph.rename(c, PYRAMID)
        x = self.embed(images)
        attention = DeformableAttention(
            self.layers, config.deform_heads, config.deform_points, config.deform_dim
        )
        with graph.scope("geometry"):
            maps, length, points = self._maps, self._pyramid.length, config.deform_points
            tokens = self.grid.num_tokens
            inward = make_geometry(graph, maps[1:2], tokens, maps, length, points)
            outward = make_geometry(graph, maps, length, maps[1:2], tokens, points)
        decided: list[Decided] = []
        first = extractors = 0
        for k, count in enumerate(config.interaction_blocks):
            name = f"interactions.{k}"
            with graph.scope(f"injector_{k}"):
                gain = self.layers.weights[f"{name}.injector.gamma"]
                found = attention(x, c, f"{name}.injector", inward, gain)
                x = graph.rename(graph.op("Add", x, found), injector_name(k))
            for block in range(first, first + count):
                x = self.gated_block(x, block, decided)
            first += count
            extra = config.extra_extractors if first == config.depth else 0
            for part in ("extractor", *(f"extra_extractors.{e}" for e in range(extra))):
                with graph.scope(f"extractor_{extractors}"):
                    c = self.extract(c, x, f"{name}.{part}", attention, outward)
                c = graph.rename(c, extractor_name(extractors))
                extractors += 1
        with graph.scope("features"):
            return self._pyramid.join(finest, c, x), decided

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
        tokens = self._maps[1].cells
        length = quotient(graph, product(graph, tokens, 21), 4)
        self._pyramid = Pyramid(self.layers, config, self._maps, length)
        head_dim = config.embed_dim // config.num_heads
        self._grid = TokenGrid(tokens, config.num_heads, head_dim, self.single)

    def embed(self, images: str) -> str:
        """Patches and positions: `[B, 3, H, W]` -> rows `[B * N, C]`."""
        config, graph = self.config, self.graph
        patch, width = config.patch_size, config.embed_dim
        with graph.scope("embedding"):
            keys = ("patch_embed.proj.weight", "patch_embed.proj.bias")
            weights = {key: self.layers.weights[key] for key in keys}
            sides = {"kernel_shape": (patch, patch), "strides": (patch, patch)}
            patches = map_op(self.layers, "Conv", graph.narrow(images), weights, **sides)
            tokens = graph.reshape(patches, -1, width, self.grid.num_tokens)
            tokens = graph.op("Transpose", tokens, perm=(0, 2, 1))
            rows = graph.reshape(graph.op("Add", tokens, self.positions()), -1, width)
        return graph.rename(rows, EMBEDDING)

    def positions(self) -> str:
        """The position table at the images' size, `[N, C]`; its class row is not used."""
        config, graph = self.config, self.graph
        table, width, token_map = self.layers.weights["pos_embed"], config.embed_dim, self._maps[1]
        if self.sizes.fixed:
            baked = interpolate_positions(table, 1, config.native_grid, config.grid)
            return self.layers.narrow_weight("positions", baked[0, 1:])
        height, across = config.native_grid
        cells = table[0, 1:].reshape(height, across, width)
        padded = np.pad(cells, ((2, 2), (2, 2), (0, 0)), mode="edge")
        stored = graph.weight("padded_positions", padded.reshape(height + 4, -1))
        rows = graph.op("MatMul", cubic_matrix(graph, height, token_map.rows), stored)
        rows = graph.reshape(rows, -1, across + 4, width)
        resized = graph.op("MatMul", cubic_matrix(graph, across, token_map.columns), rows)
        return graph.narrow(graph.reshape(resized, -1, width))

    def gated_block(self, x: str, block: int, decided: list[Decided]) -> str:
        """One ViT block, on the kept tokens if a gate stands in front of it."""
        config, graph = self.config, self.graph
        with graph.scope(f"block_{block}"):
            gate = config.gate_of.get(block)
            if gate is not None and self.mode is not TokenMode.DENSE:
                selection = self.select(x, gate)
                decided.append(
                    Decided(selection.keep, margin_name(gate), overflow=selection.overflow)
                )
                taken = selection.take(x)
                x = selection.put(x, taken, self.block(taken, block, selection.attend))
            else:
                x = self.block(x, block, attend_to_all(graph, self.grid))
        return graph.rename(x, block_name(block))

    def extract(
        self, c: str, x: str, name: str, attention: DeformableAttention, geometry: Geometry
    ) -> str:
        """Adds what the pyramid samples from the tokens, then its feed-forward network."""
        c = self.graph.op("Add", c, attention(c, x, name, geometry))
        with self.graph.scope("ffn"):
            return self.graph.op("Add", c, self._pyramid.feed_forward(c, name))
