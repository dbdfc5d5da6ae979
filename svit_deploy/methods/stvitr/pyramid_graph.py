"""The ONNX graph of an STViT-R in a detector."""

from __future__ import annotations

from typing import Any

import numpy as np

from svit_deploy.backbones.swin.conv_stem_graph import ConvStemGraph
from svit_deploy.backbones.swin.pyramid_graph import SwinPyramidGraph
from svit_deploy.backbones.swin.settings import SwinStage
from svit_deploy.graph.maps import Dim, product, total, vector
from svit_deploy.methods.stvitr.graph import StvitRGraph
from svit_deploy.methods.stvitr.settings import HIDDEN, NEAR, SAMPLE


class ConvStemPyramidGraph(SwinPyramidGraph, ConvStemGraph):
    """Maps of a Swin whose patches come from convolutions."""


class StvitRPyramidGraph(StvitRGraph):
    """Semantic tokens are kept in the raster of their own map, three by three for each window."""

    def __init__(self, writer: Any, rows: str) -> None:
        super().__init__(writer, rows)
        self.biases: dict[int, str] = {}

    def first(self, x: str, stage: SwinStage, block: int) -> str:
        graph, width, (down, across) = self.graph, stage.width, self.writer.windows(stage)
        bins = graph.constant([range(2 * i, 2 * i + 3) for i in range(SAMPLE)])
        with graph.scope("pool"):
            cells = self.writer.pad(x, stage)
            cells = graph.reshape(cells, -1, down, stage.window, across, stage.window, width)
            for axis in (2, 4):
                cells = graph.op("Gather", cells, bins, axis=axis)
                cells = graph.op("ReduceMax", cells, graph.constant([axis + 1]), keepdims=0)
        return self.look_near(graph.reshape(cells, -1, width), x, stage, block, NEAR[1])

    def second(self, semantic: str, x: str, stage: SwinStage, block: int) -> str:
        return self.look_near(semantic, x, stage, block, NEAR[2])

    def look_near(
        self, semantic: str, x: str, stage: SwinStage, block: int, near: tuple[int, int]
    ) -> str:
        """Semantic tokens look at the image tokens around their window.

        Args:
            near: side of what they see, and how much of it is in front of the window.
        """
        graph, layers, name = self.graph, self.writer.layers, stage.block(block)
        with graph.scope("attention"):
            query = layers.linear(self.normed(semantic, name), f"{name}.attn.q")
            query = self.by_window(query, stage)
            size = self.writer._maps[stage.index]
            image = graph.reshape(x, -1, size.rows, size.columns, stage.width)
            mixed = self.cross_near(
                query, image, (size.rows, size.columns), stage, block, near, SAMPLE**2
            )
            found = layers.scaled_linear(mixed, f"{name}.attn.proj", f"{name}.layer_scale_1")
            semantic = graph.op("Add", semantic, self.by_window(found, stage, back=True))
        return self.feed(semantic, name)

    def recover(self, x: str, semantic: str, stage: SwinStage, block: int) -> str:
        """Image tokens look at the semantic tokens around their window."""
        graph, layers, name = self.graph, self.writer.layers, stage.block(block)
        with graph.scope("attention"):
            windows = self.normed(self.writer.to_windows(x, stage, 0), name)
            query = layers.linear(windows, f"{name}.attn.q")
            size = self.semantic_size(stage)
            cells = graph.reshape(semantic, -1, *size, stage.width)
            mixed = self.cross_near(query, cells, size, stage, block, NEAR[5], stage.window**2)
            found = layers.scaled_linear(mixed, f"{name}.attn.proj", f"{name}.layer_scale_1")
            x = graph.op("Add", x, self.writer.from_windows(found, stage, 0))
        return self.feed(x, name)

    def look_inside(self, semantic: str, stage: SwinStage, block: int, *, local: bool) -> str:
        graph, layers, name = self.graph, self.writer.layers, stage.block(block)
        windows = product(graph, *self.writer.windows(stage))
        with graph.scope("attention"):
            normed = self.normed(semantic, name)
            normed = self.by_window(normed, stage) if local else normed
            tokens: Dim = SAMPLE**2 if local else product(graph, windows, SAMPLE**2)
            query, key, value = (layers.part(normed, f"{name}.attn", part) for part in "qkv")
            mixed = self.cross(query, key, value, stage, tokens, tokens)
            found = layers.scaled_linear(mixed, f"{name}.attn.proj", f"{name}.layer_scale_1")
            found = self.by_window(found, stage, back=True) if local else found
            semantic = graph.op("Add", semantic, found)
        return self.feed(semantic, name)

    def semantic_size(self, stage: SwinStage) -> tuple[Dim, Dim]:
        """Rows and columns of the semantic tokens."""
        rows, columns = (product(self.graph, n, SAMPLE) for n in self.writer.windows(stage))
        return rows, columns

    def by_window(self, rows: str, stage: SwinStage, back: bool = False) -> str:
        """Semantic tokens in their raster -> window by window, or back."""
        graph, (down, across) = self.graph, self.writer.windows(stage)
        shape = (down, across, SAMPLE, SAMPLE) if back else (down, SAMPLE, across, SAMPLE)
        split = graph.reshape(rows, -1, *shape, stage.width)
        moved = graph.op("Transpose", split, perm=(0, 1, 3, 2, 4, 5))
        return graph.reshape(moved, -1, stage.width)

    def cross_near(
        self,
        query: str,
        cells: str,
        size: tuple[Dim, Dim],
        stage: SwinStage,
        block: int,
        near: tuple[int, int],
        tokens: int,
    ) -> str:
        """Attention of `tokens` of each window to the map `cells [B, *size, C]` around it."""
        graph, (side, before), name = self.graph, near, stage.block(block)
        step = self.apart(near, stage)
        beyond = [
            total(graph, self.writer.rest(product(graph, n, step), part), side - step - before)
            for n, part in zip(self.writer.windows(stage), size, strict=True)
        ]
        pads = vector(graph, (0, before, before, 0, 0, *beyond, 0))
        cells = graph.to_precision(graph.op("Pad", graph.to_float32(cells), pads))
        seen = []
        lengths = [graph.shape(cells, axis) for axis in (1, 2)]
        flat = self.normed(graph.reshape(cells, -1, stage.width), name)
        for part in "kv":
            rows = self.writer.layers.part(flat, f"{name}.attn", part)
            split = graph.reshape(rows, -1, *lengths, stage.width)
            split = self.around(split, 1, stage, near)
            seen.append(graph.reshape(split, -1, stage.width))
        windows = product(graph, *self.writer.windows(stage))
        if side not in self.biases:
            self.biases[side] = self.hidden(size, lengths, stage, near)
        key, value = seen
        bias = self.biases[side]
        return self.cross(query, key, value, stage, tokens, side**2, bias, windows)

    def apart(self, near: tuple[int, int], stage: SwinStage) -> int:
        """From one window to the next: in image tokens, or in semantic ones."""
        return SAMPLE if near == NEAR[5] else stage.window

    def around(self, cells: str, axis: int, stage: SwinStage, near: tuple[int, int]) -> str:
        """`[..., rows, columns, ...]` -> `[..., down, across, side, side, ...]` from an axis on."""
        graph, side = self.graph, near[0]
        for along, windows in zip((axis, axis + 2), self.writer.windows(stage), strict=True):
            first = graph.op(
                "Mul", graph.range(graph.vector(windows)), graph.constant(self.apart(near, stage))
            )
            first = graph.op("Unsqueeze", first, graph.constant([1]))
            places = graph.op("Add", first, graph.constant([list(range(side))]))
            cells = graph.op("Gather", cells, places, axis=along)
        order = [axis, axis + 2, axis + 1, axis + 3]
        rest = [axis + 4] if axis else []
        return graph.op("Transpose", cells, perm=[*range(axis), *order, *rest])

    def hidden(
        self, size: tuple[Dim, Dim], lengths: list[str], stage: SwinStage, near: tuple[int, int]
    ) -> str:
        """What is added to the scores of the places around each window `[windows, 1, 1, side²]`.

        A table over the padded map in which `[-bottom:, -right:]` is hidden, with the rows and
        columns of image tokens that padding added, and everything around it. Where both were added
        only their corner is hidden, where one was it is hidden, and where none was all of it is:
        then nothing is, for all scores have the same added.
        """
        graph, (side, before) = self.graph, near
        image = self.writer._maps[stage.index]
        inside: list[str] = []
        corner: list[str] = []
        for axis, (windows, part, length) in enumerate(
            zip(self.writer.windows(stage), (image.rows, image.columns), lengths, strict=True)
        ):
            numbers = graph.op("Sub", graph.range(length), graph.constant(before))
            whole = graph.vector(product(graph, windows, self.apart(near, stage)))
            added = self.writer.rest(product(graph, windows, stage.window), part)
            start = graph.op("Max", self.writer.rest(whole, added), graph.constant([0]))
            none = graph.op("Equal", graph.vector(added), graph.constant([0]))
            start = graph.op("Where", none, graph.constant([0]), start)
            here = graph.op("GreaterOrEqual", numbers, graph.constant([0]))
            here = graph.op("And", here, graph.op("Less", numbers, whole))
            edge = graph.op("And", here, graph.op("GreaterOrEqual", numbers, start))
            for found, mask in ((inside, here), (corner, edge)):
                found.append(graph.op("Unsqueeze", mask, graph.constant([1 - axis])))
        shown = graph.op("And", *inside)
        shown = graph.op("And", shown, graph.op("Not", graph.op("And", *corner)))
        shown_number = graph.op("Cast", shown, to=6)
        any_shown = graph.op("ReduceMax", shown_number, keepdims=0)
        nothing = graph.op("Equal", any_shown, graph.constant(0, np.int32))
        shown = graph.op("Or", shown, nothing)
        table = graph.op("Where", shown, graph.number(0), graph.number(HIDDEN))
        return graph.reshape(self.around(table, 0, stage, near), -1, 1, 1, side**2)
