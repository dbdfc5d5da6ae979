"""A (S)ViT-Adapter backbone as an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from svit_deploy.config import TokenMode
from svit_deploy.detection.config import DEFAULT_SIZES, STRIDES, AdapterConfig, SizeRange
from svit_deploy.detection.graph.deformable import (
    NORM_EPS,
    DeformableAttention,
    Geometry,
    make_geometry,
    split,
)
from svit_deploy.detection.graph.maps import (
    Dim,
    MapSize,
    cubic_matrix,
    map_size,
    product,
    quotient,
    to_map,
    to_rows,
)
from svit_deploy.export.builder import FLOAT
from svit_deploy.export.names import EMBEDDING, INPUT, block_name
from svit_deploy.export.tokens import Selection, TokenGrid, attend_to_all
from svit_deploy.export.vit import VitGraph
from svit_deploy.models.positions import interpolate_positions

PYRAMID = "pyramid"
"""The graph's value `[B * 21N/4, C]`: the convolutional branch's tokens, finest map first."""
BATCH_NORM_EPS = 1e-5
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
    _pyramid: Dim = field(init=False)

    @property
    def config(self) -> AdapterConfig:
        assert isinstance(self.model.config, AdapterConfig)
        return self.model.config

    @property
    def grid(self) -> TokenGrid:
        return self._grid

    def budget_rows(self, gate: int) -> Dim:
        graph = self.graph
        units, tokens = ratio_units(self.shares[gate]), self.grid.num_tokens
        if isinstance(tokens, int):
            return rows_within(self.shares[gate], tokens)
        parts = graph.op("Mul", tokens, graph.vector(units))
        return quotient(graph, graph.op("Add", parts, graph.vector(RATIO_UNIT - 1)), RATIO_UNIT)

    def build(self) -> onnx.ModelProto:
        """`images [batch, 3, H, W]` -> four feature maps, and what the gates decided."""
        features, selections = self.backbone(self.image_input())
        for stride, feature in zip(STRIDES, features, strict=True):
            shape = (self.batch, self.config.embed_dim, *self.map_shape(stride))
            self.graph.output(self.graph.rename(feature, feature_name(stride)), FLOAT, shape)
        if selections and self.gate_outputs:
            self.add_gate_outputs(selections)
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

    def backbone(self, images: str) -> tuple[list[str], list[Selection]]:
        """The four feature maps, finest first, and the selection of each gated block."""
        config, graph = self.config, self.graph
        self.measure(images)
        stride4, c = self.pyramid(images)
        c = graph.rename(c, PYRAMID)
        x = self.embed(images)
        attention = DeformableAttention(
            self.layers, config.deform_heads, config.deform_points, config.deform_dim
        )
        with graph.scope("geometry"):
            token_map, tokens = self._maps[1], self.grid.num_tokens
            inward = make_geometry(
                graph, [token_map], tokens, self._maps, self._pyramid, config.deform_points
            )
            outward = make_geometry(
                graph, self._maps, self._pyramid, [token_map], tokens, config.deform_points
            )
        selections: list[Selection] = []
        first = extractors = 0
        for k, count in enumerate(config.interaction_blocks):
            name = f"interactions.{k}"
            with graph.scope(f"injector_{k}"):
                gain = self.layers.weights[f"{name}.injector.gamma"]
                found = attention(x, c, f"{name}.injector", inward, gain)
                x = graph.rename(graph.op("Add", x, found), injector_name(k))
            for block in range(first, first + count):
                x = self.gated_block(x, block, selections)
            first += count
            extra = config.extra_extractors if first == config.depth else 0
            for part in ("extractor", *(f"extra_extractors.{e}" for e in range(extra))):
                with graph.scope(f"extractor_{extractors}"):
                    c = self.extract(c, x, f"{name}.{part}", attention, outward)
                c = graph.rename(c, extractor_name(extractors))
                extractors += 1
        with graph.scope("features"):
            return self.join(stride4, c, x), selections

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
        self._pyramid = quotient(graph, product(graph, tokens, 21), 4)
        head_dim = config.embed_dim // config.num_heads
        self._grid = TokenGrid(tokens, config.num_heads, head_dim, self.single)

    def embed(self, images: str) -> str:
        """Patches and positions: `[B, 3, H, W]` -> rows `[B * N, C]`."""
        config, graph = self.config, self.graph
        patch, width = config.patch_size, config.embed_dim
        with graph.scope("embedding"):
            weight, bias = (self.layers.weight(f"patch_embed.proj.{p}") for p in ("weight", "bias"))
            patches = graph.op(
                "Conv", images, weight, bias, kernel_shape=(patch, patch), strides=(patch, patch)
            )
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
            return graph.weight("positions", baked[0, 1:])
        height, across = config.native_grid
        cells = table[0, 1:].reshape(height, across, width)
        padded = np.pad(cells, ((2, 2), (2, 2), (0, 0)), mode="edge")
        stored = graph.weight("padded_positions", padded.reshape(height + 4, -1))
        rows = graph.op("MatMul", cubic_matrix(graph, height, token_map.rows), stored)
        rows = graph.reshape(rows, -1, across + 4, width)
        resized = graph.op("MatMul", cubic_matrix(graph, across, token_map.columns), rows)
        return graph.reshape(resized, -1, width)

    def pyramid(self, images: str) -> tuple[str, str]:
        """The convolutional branch: its map of stride 4, and tokens `[B * 21N/4, C]`.

        The finest map leaves with the last batch norm and the bias of `up` folded in already.
        """
        config, graph, weights = self.config, self.graph, self.layers.weights
        with graph.scope("pyramid"):
            x = images
            for i, stride in ((0, 2), (3, 1), (6, 1)):
                x = self.conv_norm_relu(x, f"spm.stem.{i}", f"spm.stem.{i + 1}", stride)
            maps = [graph.op("MaxPool", x, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))]
            for i in (2, 3, 4):
                maps.append(self.conv_norm_relu(maps[-1], f"spm.conv{i}.0", f"spm.conv{i}.1", 2))
            scale, shift = self.affine("norm1")
            bias = (weights["spm.fc1.bias"] + weights["up.bias"]) * scale + shift
            finest = self.conv(
                maps[0],
                "spm.fc1.normed",
                weights["spm.fc1.weight"] * scale[:, None, None, None],
                bias,
            )
            parts = []
            for level, (feature, size) in enumerate(zip(maps[1:], self._maps, strict=True)):
                weight, bias = (weights[f"spm.fc{level + 2}.{p}"] for p in ("weight", "bias"))
                rows = to_rows(graph, feature, size.cells, weight.shape[1])
                name = f"spm.fc{level + 2}.levelled"
                rows = graph.op(
                    "Gemm",
                    rows,
                    graph.weight(f"{name}.weight", weight[:, :, 0, 0]),
                    graph.weight(f"{name}.bias", bias + weights["level_embed"][level]),
                    transB=1,
                )
                parts.append(graph.reshape(rows, -1, size.cells, config.embed_dim))
            return finest, graph.reshape(graph.op("Concat", *parts, axis=1), -1, config.embed_dim)

    def gated_block(self, x: str, block: int, selections: list[Selection]) -> str:
        """One ViT block, on the kept tokens if a gate stands in front of it."""
        config, graph = self.config, self.graph
        with graph.scope(f"block_{block}"):
            if block in config.gate_blocks and self.mode is not TokenMode.DENSE:
                selection = self.select(x, config.gate_blocks.index(block))
                selections.append(selection)
                taken = selection.take(x)
                x = selection.put(x, taken, self.block(taken, block, selection.attend))
            else:
                x = self.block(x, block, attend_to_all(graph, self.grid))
        return graph.rename(x, block_name(block))

    def extract(
        self, c: str, x: str, name: str, attention: DeformableAttention, geometry: Geometry
    ) -> str:
        """Adds what the pyramid samples from the tokens, then a network with a 3x3 convolution."""
        graph, layers, hidden = self.graph, self.layers, self.config.ffn_dim
        c = graph.op("Add", c, attention(c, x, name, geometry))
        with graph.scope("ffn"):
            rows = layers.linear(
                layers.layer_norm(c, f"{name}.ffn_norm", NORM_EPS), f"{name}.ffn.fc1"
            )
            parts = []
            for part, size in zip(self.split_pyramid(rows, hidden), self._maps, strict=True):
                weight, bias = (
                    layers.weights[f"{name}.ffn.dwconv.dwconv.{p}"] for p in ("weight", "bias")
                )
                mixed = self.conv(part, f"{name}.ffn.dwconv", weight, bias, groups=hidden)
                parts.append(graph.reshape(mixed, -1, hidden, size.cells))
            rows = to_rows(graph, graph.op("Concat", *parts, axis=2), self._pyramid, hidden)
            return graph.op("Add", c, layers.linear(graph.op("Gelu", rows), f"{name}.ffn.fc2"))

    def split_pyramid(self, rows: str, channels: int) -> list[str]:
        """Pyramid rows -> maps `[B, channels, h, w]` of strides 8, 16, 32."""
        graph = self.graph
        tokens = graph.reshape(rows, -1, self._pyramid, channels)
        turned = graph.op("Transpose", tokens, perm=(0, 2, 1))
        parts = split(graph, turned, [size.cells for size in self._maps], axis=2)
        return [
            graph.reshape(part, -1, channels, size.rows, size.columns)
            for part, size in zip(parts, self._maps, strict=True)
        ]

    def join(self, finest: str, c: str, x: str) -> list[str]:
        """Both branches added and normed: maps of strides 4, 8, 16, 32."""
        config, graph, weights = self.config, self.graph, self.layers.weights
        maps = self.split_pyramid(c, config.embed_dim)
        tokens = to_map(graph, x, self._maps[1], config.embed_dim)

        def channelwise(op: str, value: str, array: np.ndarray) -> str:
            return graph.op(op, value, graph.constant(array[:, None, None], np.float32))

        def enlarge(value: str, factor: int) -> str:
            scales = graph.constant([1, 1, factor, factor], np.float32)
            return graph.op("Resize", value, "", scales, mode="linear")

        scale, _ = self.affine("norm1")
        up = graph.op(
            "ConvTranspose",
            maps[0],
            graph.weight("up.normed.weight", weights["up.weight"] * scale[:, None, None]),
            kernel_shape=(2, 2),
            strides=(2, 2),
        )
        features = [
            graph.op(
                "Add", graph.op("Add", up, finest), enlarge(channelwise("Mul", tokens, scale), 4)
            )
        ]
        halved = graph.op("AveragePool", tokens, kernel_shape=(2, 2), strides=(2, 2))
        for i, (feature, resized) in enumerate(
            zip(maps, (enlarge(tokens, 2), tokens, halved), strict=True), 2
        ):
            scale, shift = self.affine(f"norm{i}")
            joined = channelwise("Mul", graph.op("Add", feature, resized), scale)
            features.append(channelwise("Add", joined, shift))
        return features

    def conv(
        self,
        x: str,
        name: str,
        weight: np.ndarray,
        bias: np.ndarray,
        stride: int = 1,
        groups: int = 1,
    ) -> str:
        """A convolution that keeps the size, divided by the stride."""
        side = weight.shape[2]
        return self.graph.op(
            "Conv",
            x,
            self.graph.weight(f"{name}.weight", weight),
            self.graph.weight(f"{name}.bias", bias),
            kernel_shape=(side, side),
            strides=(stride, stride),
            pads=(side // 2,) * 4,
            group=groups,
        )

    def conv_norm_relu(self, x: str, conv: str, norm: str, stride: int) -> str:
        """The batch norm folded into the convolution."""
        scale, shift = self.affine(norm)
        weight = self.layers.weights[f"{conv}.weight"] * scale[:, None, None, None]
        return self.graph.op("Relu", self.conv(x, f"{conv}.normed", weight, shift, stride))

    def affine(self, norm: str) -> tuple[np.ndarray, np.ndarray]:
        """A batch norm as scale and shift per channel, float32 `[C]` each."""
        mean, var, weight, bias = (
            self.layers.weights[f"{norm}.{part}"].astype(np.float64)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        scale = weight / np.sqrt(var + BATCH_NORM_EPS)
        return scale.astype(np.float32), (bias - mean * scale).astype(np.float32)
