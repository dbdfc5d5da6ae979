"""STViT's ONNX graph, and what is Swin's part of it."""

from __future__ import annotations

from typing import Any

from svit_deploy.backbones.swin.conv_stem_graph import ConvStemGraph
from svit_deploy.backbones.swin.graph import SwinGraph
from svit_deploy.backbones.videoswin.graph import VideoSwinGraph
from svit_deploy.graph.maps import conv, map_size, to_map, to_rows
from svit_deploy.methods.semantic.graph import SemanticGraph
from svit_deploy.methods.stvit.settings import POOLS, Layout


class StvitGraph(SemanticGraph):
    """Semantic tokens take the place of the image tokens for good."""

    image = ""

    def __init__(self, writer: Any, rows: str, layout: Layout) -> None:
        super().__init__(writer, rows)
        self.layout, self.sampling, self.together = layout, layout.sampling, layout.together

    def block(self, block: int) -> str:
        layout, settings = self.layout, self.config.settings
        stage, number = layout.places[block]
        if block < layout.start:
            return super().block(block)
        if block == layout.start:
            self.image = self.rows
            return self.begin(
                self.rows,
                stage,
                number,
                shortcut=settings.shortcut,
                pooled_keys=settings.pooled_keys,
            )
        if block == layout.start + 1:
            return self.look_around(
                self.rows,
                self.image,
                stage,
                number,
                "semantic_tokens",
                keep_learnt=settings.keep_learnt,
            )
        return self.look_inside(self.rows, stage, number, local=block in layout.local)

    def pooled(self, near: str, width: int) -> str:
        """As means of each cell whose weights are learnt, if they are."""
        graph, sampling = self.graph, self.sampling
        if not (size := self.config.settings.pool_places):
            return super().pooled(near, width)
        assert sampling.cell
        cells = graph.reshape(near, -1, size, width)

        def means(scores: str) -> str:
            shares = graph.op("Softmax", graph.to_float32(scores), axis=-1)
            shares = graph.reshape(graph.to_precision(shares), -1, 1, size)
            return graph.reshape(graph.op("MatMul", shares, cells), -1, width)

        inside, between = POOLS
        scores = graph.reshape(self.scores(cells, inside, sampling.cell, width), -1, size)
        window = (sampling.sample, sampling.sample)
        offsets = self.scores(means(scores), between, window, width)
        found = means(graph.op("Add", scores, offsets))
        return graph.reshape(found, -1, sampling.count, width)

    def scores(self, x: str, name: str, shape: tuple[int, int], width: int) -> str:
        """What a small network makes of each place of maps of some shape, rows `[R, outputs]`."""
        graph, layers, weights = self.graph, self.writer.layers, self.writer.layers.weights
        size = map_size(graph, *shape)
        kernel, bias = weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"]
        x = conv(layers, to_map(graph, x, size, width), f"{name}.conv", kernel, bias, groups=width)
        x = layers.layer_norm(to_rows(graph, x, width), f"{name}.norm", self.config.block_eps)
        return str(layers.linear(graph.op("Gelu", graph.to_precision(x)), f"{name}.linear"))

    def for_head(self) -> tuple[str, int | str]:
        return self.rows, self.layout.maps * self.sampling.count


class WideningGraph(SwinGraph):
    """A linear layer of each semantic token stands in front of the last stage."""

    def shrink(self, x: str, stage: Any) -> str:
        graph, layers, name = self.graph, self.layers, f"layers.{stage.index - 1}.widen"
        if f"{name}.weight" not in layers.weights:
            return super().shrink(x, stage)
        with graph.scope("shrink"):
            if f"{name}_norm.weight" in layers.weights:
                x = graph.to_precision(layers.layer_norm(x, f"{name}_norm", self.eps))
            parts = [part for part in ("weight", "bias") if f"{name}.{part}" in layers.weights]
            given = [layers.cast_weight(f"{name}.{part}") for part in parts]
            return graph.op("Gemm", x, *given, transB=1)


class StvitSwinGraph(WideningGraph, ConvStemGraph):
    """With a stem of convolutions."""


class StvitVideoGraph(WideningGraph, VideoSwinGraph):
    """Of videos."""
