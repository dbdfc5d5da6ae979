"""The ONNX graph of a Swin for detectors; one image size is baked in, or all are free."""

from __future__ import annotations

from typing import Any

from svit_deploy.backbones.swin.graph import SwinGraph, position_bias
from svit_deploy.backbones.swin.settings import CORNERS, FAINT, SwinStage, stages
from svit_deploy.graph.builder import INT64, INT64_MAX
from svit_deploy.graph.layers import QKV, attend_heads
from svit_deploy.graph.maps import Dim, MapSize, map_size, product, quotient, to_map, total, vector


class SwinPyramidGraph(SwinGraph):
    _maps: list[MapSize]

    @property
    def num_tokens(self) -> Dim:
        return self._maps[0].cells

    def run(self, images: str) -> Any:
        """The feature maps `[B, C << stage, h, w]` of the stages, finest first, and the tokens."""
        self.measure(images)
        tokens, number, features = self.method.graph(self, self.embed(images)), 0, []
        for stage, size in zip(stages(self.config), self._maps, strict=True):
            if stage.index:
                with self.graph.scope(f"block_{number}"):
                    tokens.put_map(self.shrink(tokens.map(), stage))
            tokens.count = size.cells
            for block in range(number, number + stage.depth):
                tokens.step(block)
            number += stage.depth
            with self.graph.scope("features"):
                normed = self.layers.layer_norm(tokens.map(), f"norm{stage.index}", self.eps)
                features.append(
                    to_map(self.graph, self.graph.to_precision(normed), size, stage.width)
                )
        return features, tokens

    def measure(self, images: str) -> None:
        """Sets the sizes of the stages' maps, and what shifts hide in each."""
        graph, self._maps, self._hidden = self.graph, [], dict[int, str]()
        for stride in (4, 8, 16, 32):
            sides: list[Dim] = [side // stride for side in self.config.image_size]
            if not self.sizes.fixed:
                sides = [quotient(graph, graph.shape(images, axis), stride) for axis in (2, 3)]
            self._maps.append(map_size(graph, *sides))

    def attend(self, x: str, stage: SwinStage, block: int) -> str:
        graph, layers, name = self.graph, self.layers, stage.block(block)
        shift = stage.window // 2 if block % 2 else 0
        with graph.scope("attention"):
            normed = graph.to_precision(layers.layer_norm(x, f"{name}.norm1", self.eps))
            windows = self.to_windows(normed, stage, shift)
            qkv = layers.qkv(windows, f"{name}.attn")
            table = layers.weights[f"{name}.attn.relative_position_bias_table"]
            bias = graph.number(position_bias(table, stage.window))
            if shift:
                bias = graph.op("Add", bias, self.hidden(stage, shift))
            mixed = self.window_attention(qkv, stage, bias, product(graph, *self.windows(stage)))
            mixed = layers.linear(mixed, f"{name}.attn.proj")
            return graph.op("Add", x, self.from_windows(mixed, stage, shift))

    def window_attention(self, qkv: QKV, stage: SwinStage, bias: str, windows: Dim) -> str:
        """Softmax attention in each window, rows `[B * windows * K, C]` window by window.

        Args:
            windows: of an image.
            bias: `[windows or 1, H, K, K]`, added to the scores.
        """
        graph, inside, dim = self.graph, stage.inside, stage.width // stage.heads

        def heads(rows: str, *order: int) -> str:
            split = graph.reshape(rows, -1, windows, inside, stage.heads, dim)
            return graph.op("Transpose", split, perm=(0, 1, *order))

        query, key, value = qkv
        query, key, value = heads(query, 3, 2, 4), heads(key, 3, 4, 2), heads(value, 3, 2, 4)
        mixed = graph.op(
            "Transpose", attend_heads(graph, query, key, value, dim, bias), perm=(0, 1, 3, 2, 4)
        )
        return graph.reshape(mixed, -1, stage.width)

    def windows(self, stage: SwinStage) -> tuple[Dim, Dim]:
        """How many windows cover a map, down and across."""
        graph, size, side = self.graph, self._maps[stage.index], stage.window
        down, across = (
            quotient(graph, total(graph, n, side - 1), side) for n in (size.rows, size.columns)
        )
        return down, across

    def padded(self, stage: SwinStage) -> tuple[Dim, Dim]:
        """Rows and columns of the windows together."""
        height, length = (product(self.graph, n, stage.window) for n in self.windows(stage))
        return height, length

    def rest(self, whole: Dim, part: Dim) -> Dim:
        if isinstance(whole, int) and isinstance(part, int):
            return whole - part
        return self.graph.op("Sub", self.graph.vector(whole), self.graph.vector(part))

    def pad(self, x: str, stage: SwinStage) -> str:
        """Rows `[B * cells, C]` -> `[B, height, length, C]`, zeros behind the map."""
        graph, size = self.graph, self._maps[stage.index]
        height, length = self.padded(stage)
        x = graph.reshape(x, -1, size.rows, size.columns, stage.width)
        beyond = self.rest(height, size.rows), self.rest(length, size.columns)
        if beyond == (0, 0):
            return x
        pads = vector(graph, (0, 0, 0, 0, 0, *beyond, 0))
        return graph.to_precision(graph.op("Pad", graph.to_float32(x), pads))

    def crop(self, x: str, stage: SwinStage) -> str:
        """`[B, height, length, C]` -> rows `[B * cells, C]`."""
        graph, size = self.graph, self._maps[stage.index]
        if self.padded(stage) != (size.rows, size.columns):
            ends = vector(graph, (size.rows, size.columns))
            x = graph.op("Slice", x, graph.constant([0, 0]), ends, graph.constant([1, 2]))
        return graph.reshape(x, -1, stage.width)

    def roll(self, x: str, shift: int) -> str:
        """Rows and columns moved up and left by `shift`, those that leave put behind the others."""
        graph = self.graph
        for axis in (1, 2) if shift else ():
            first = graph.slice(x, 0, shift, axis)
            rest = graph.slice(x, shift, INT64_MAX, axis)
            x = graph.op("Concat", rest, first, axis=axis)
        return x

    def to_windows(self, x: str, stage: SwinStage, shift: int) -> str:
        """Rows `[B * cells, C]` -> rows `[B * windows * side², C]`, window by window."""
        graph, side, (down, across) = self.graph, stage.window, self.windows(stage)
        x = self.roll(self.pad(x, stage), shift)
        x = graph.reshape(x, -1, down, side, across, side, stage.width)
        return graph.reshape(graph.op("Transpose", x, perm=(0, 1, 3, 2, 4, 5)), -1, stage.width)

    def from_windows(self, x: str, stage: SwinStage, shift: int) -> str:
        """The inverse of `to_windows`."""
        graph, side, (down, across) = self.graph, stage.window, self.windows(stage)
        x = graph.reshape(x, -1, down, across, side, side, stage.width)
        x = graph.op("Transpose", x, perm=(0, 1, 3, 2, 4, 5))
        x = graph.reshape(x, -1, *self.padded(stage), stage.width)
        return self.crop(self.roll(x, -shift), stage)

    def hidden(self, stage: SwinStage, shift: int) -> str:
        """`FAINT` where query and key of a shifted window were apart `[windows, 1, K, K]`."""
        graph, side = self.graph, stage.window
        if stage.index in self._hidden:
            return self._hidden[stage.index]
        height, length = self.padded(stage)
        down, across = self.windows(stage)

        def part(whole: Dim) -> str:
            """0, 1 or 2: the part of an axis that each place is in."""
            numbers = graph.range(graph.vector(whole))
            behind = [
                graph.op("GreaterOrEqual", numbers, graph.vector(total(graph, whole, -n)))
                for n in (side, shift)
            ]
            return graph.op("Add", *(graph.op("Cast", b, to=INT64) for b in behind))

        rows = graph.op("Mul", part(height), graph.constant(3))
        label = graph.op(
            "Add",
            graph.op("Unsqueeze", rows, graph.constant([1])),
            graph.op("Unsqueeze", part(length), graph.constant([0])),
        )
        label = graph.reshape(label, down, side, across, side)
        label = graph.reshape(graph.op("Transpose", label, perm=(0, 2, 1, 3)), -1, 1, side**2)
        own = graph.op("Unsqueeze", label, graph.constant([3]))
        same = graph.op("Equal", own, graph.op("Unsqueeze", label, graph.constant([2])))
        hidden = graph.op("Where", same, graph.number(0), graph.number(FAINT))
        self._hidden[stage.index] = hidden
        return hidden

    def shrink(self, x: str, stage: SwinStage) -> str:
        """Each two by two tokens of the stage before become one of twice the width."""
        graph, layers, width = self.graph, self.layers, stage.width // 2
        size = self._maps[stage.index]
        x = graph.reshape(x, -1, size.rows, 2, size.columns, 2, width)
        corners = [self.corner(x, row, column) for row, column in CORNERS]
        joined = graph.op("Concat", *corners, axis=3)
        name = f"layers.{stage.index - 1}.downsample"
        with graph.scope("shrink"):
            rows = graph.reshape(joined, -1, 4 * width)
            normed = graph.to_precision(layers.layer_norm(rows, f"{name}.norm", self.eps))
            weight = layers.cast_weight(f"{name}.reduction.weight")
            return graph.op("Gemm", normed, weight, transB=1)

    def corner(self, x: str, row: int, column: int) -> str:
        """Of `[B, rows, 2, columns, 2, C]` one of each four `[B, rows, columns, C]`."""
        x = self.graph.op("Gather", x, self.graph.constant(row), axis=2)
        return self.graph.op("Gather", x, self.graph.constant(column), axis=3)
