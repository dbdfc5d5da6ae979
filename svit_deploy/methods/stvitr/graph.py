"""STViT-R's ONNX graph."""

from __future__ import annotations

from typing import Any

from svit_deploy.backbones.swin.settings import SwinStage, places
from svit_deploy.methods.semantic.graph import SemanticGraph
from svit_deploy.methods.stvitr.settings import IN_WINDOW, SAMPLING, UNIT


class StvitRGraph(SemanticGraph):
    """Image tokens and semantic ones go side by side.

    Attributes:
        image, semantic: what the last block gave of either kind.
    """

    sampling = SAMPLING
    semantic = ""

    def __init__(self, writer: Any, rows: str) -> None:
        super().__init__(writer, rows)
        self.image = rows

    def map(self) -> str:
        return self.image

    def put_map(self, x: str) -> None:
        self.rows = self.image = x

    def step(self, block: int) -> None:
        super().step(block)
        if self.role(block) in (0, 5):
            self.image = self.rows
        else:
            self.semantic = self.rows

    def role(self, block: int) -> int:
        """The block's place in its unit; 0 outside of units."""
        stage, number = places(self.config)[block]
        return number % UNIT if stage.index == 2 else 0

    def block(self, block: int) -> str:
        stage, number = places(self.config)[block]
        role, x, semantic = self.role(block), self.image, self.semantic
        if role == 0:
            return str(self.writer.plain_block(x, block, stage.tokens))
        if role == 1:
            return self.first(x, stage, number)
        if role == 2:
            return self.second(semantic, x, stage, number)
        if role == 5:
            return self.recover(x, semantic, stage, number)
        return self.look_inside(semantic, stage, number, local=role == IN_WINDOW)

    def first(self, x: str, stage: SwinStage, block: int) -> str:
        """Semantic tokens out of image tokens."""
        return self.begin(x, stage, block, shortcut=self.config.settings.shortcut)

    def second(self, semantic: str, x: str, stage: SwinStage, block: int) -> str:
        """Semantic tokens that look at the image once more."""
        learnt = block < UNIT and self.config.settings.use_global
        name = "layers.2.semantic_token2" if learnt else None
        return self.look_around(semantic, x, stage, block, name)

    def recover(self, x: str, semantic: str, stage: SwinStage, block: int) -> str:
        """Image tokens look at the semantic ones."""
        return self.look(x, semantic, stage, block, stage.tokens, self.sampling.count)

    def placed(self, pooled: str, name: str) -> str:
        """With a convolution over each window added, every channel by itself."""
        graph, writer, weights = self.graph, self.writer, self.writer.layers.weights
        name, sampling = f"{name}.conv_pos.proj.0", self.sampling
        if f"{name}.weight" not in weights:
            return pooled
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        width = len(weight)
        x = graph.reshape(pooled, -1, sampling.in_window, width)
        x = graph.op("Transpose", x, perm=(0, 2, 1))
        x = graph.reshape(x, -1, width, sampling.sample, sampling.sample)
        exact = writer.exact_convolutions
        x = writer.convolve(
            graph.to_float32(x) if exact else x,
            name,
            weight,
            bias,
            exact,
            kernel_shape=(3, 3),
            pads=(1, 1, 1, 1),
            group=width,
        )
        x = graph.reshape(graph.to_precision(x) if exact else x, -1, width, sampling.in_window)
        x = graph.reshape(graph.op("Transpose", x, perm=(0, 2, 1)), -1, sampling.count, width)
        return graph.op("Add", pooled, x)
