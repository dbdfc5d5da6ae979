"""What the ONNX writers of all backbones have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from svit_deploy.backbones.tokens import Decided, GraphTokens
from svit_deploy.graph.builder import BOOL, FLOAT, INT64, INT64_MAX, GraphBuilder
from svit_deploy.graph.layers import QKV, Layers, attention, class_attention
from svit_deploy.graph.maps import total
from svit_deploy.graph.packed import TokenGrid
from svit_deploy.graph.tokens import attend_to_all
from svit_deploy.model.budget import Budget
from svit_deploy.model.config import ModelConfig, TokenMode
from svit_deploy.model.model import Model
from svit_deploy.model.sizes import SizeRange
from svit_deploy.names import INPUT, KEEP_MASK, MARGIN, OVERFLOW, SOURCE


class Selects(Protocol):
    """What a writer must know of a method."""

    def graph(self, writer: Any, rows: str) -> GraphTokens:
        """The embedded tokens `[B * S, C]`, ready for the first block."""

    def mask_width(self, config: ModelConfig) -> int:
        """Tokens that keep masks tell about."""


@dataclass(frozen=True)
class GraphOptions:
    """What a graph is written for.

    Attributes:
        mode: token mode.
        budgets: in `budget` mode, what each gate may keep.
        gate_outputs: add `keep_mask`, `margin` and, with a budget, `overflow`.
        opset: ONNX operator set version.
        precision: one of `PRECISIONS`. Inputs, outputs and gates are float32 in any of them.
        steps: of int8 and fp8, the step of a linear layer's inputs; others multiply float32.
        plugins: write row moves as nodes that the TensorRT plugins implement.
        sizes: image sizes to run; by default the configuration's alone.
        single: one image at a time only, which spares `dynamic` the slots of attention.
    """

    mode: TokenMode
    budgets: tuple[Budget, ...] = ()
    gate_outputs: bool = True
    opset: int = 20
    precision: str = "fp32"
    steps: Mapping[str, float] = field(default_factory=dict)
    plugins: bool = False
    sizes: SizeRange | None = None
    single: bool = False


class GraphWriter:
    """Writes what a backbone computes; each backbone has a writer of its own.

    Args:
        model: configuration and canonical weights.
        method: which tokens a block computes.
        options: what the graph is for.
    """

    def __init__(self, model: Model, method: Selects, options: GraphOptions) -> None:
        self.model, self.config, self.method, self.options = model, model.config, method, options
        self.mode = options.mode
        self.sizes = options.sizes or SizeRange.single(self.config.image_size)
        name = f"{self.config.family}_{self.mode.value}"
        self.graph = GraphBuilder(name, options.opset, options.precision, options.plugins)
        self.layers = Layers(self.graph, self.fold(model.weights), options.steps)

    # What a backbone states.

    def fold(self, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The weights as the graph has them: constant factors multiplied in."""
        return weights

    def run(self, images: str) -> Any:
        """The backbone: from the input to its output, and the tokens that it ends with."""
        raise NotImplementedError

    def plain_block(self, rows: str, block: int, count: int | str) -> str:
        """A block on all of some rows `[B * count, C]`."""
        grid = self.grid_of(count)
        return self.block(rows, block, attend_to_all(self.graph, grid))

    def block(self, rows: str, block: int, attend: Any) -> str:
        """A block on rows `[R, C]` that attend to each other as the caller says."""
        return self.layers.block(rows, f"blocks.{block}", self.config.block_eps, attend)

    # What backbones share.

    @property
    def batch(self) -> int | str:
        """The batch dimension of inputs and outputs."""
        return 1 if self.options.single else "batch"

    @property
    def num_tokens(self) -> int | str:
        """S, a number or an int64 vector."""
        return self.config.num_tokens

    @property
    def most_tokens(self) -> int:
        """What S is at most."""
        return self.config.at(self.sizes.max).num_tokens

    @property
    def mask_width(self) -> int | str:
        """Tokens that the gate outputs tell about, a number or an int64 vector."""
        return self.method.mask_width(self.config)

    @property
    def grid(self) -> TokenGrid:
        return self.grid_of(self.num_tokens)

    def grid_of(self, tokens: int | str) -> TokenGrid:
        """The layout of attention among `tokens` of each image."""
        config = self.config
        head_dim = config.embed_dim // config.num_heads
        return TokenGrid(tokens, config.num_heads, head_dim, self.options.single)

    def image_input(self) -> str:
        frames = (self.config.frames,) if self.config.frames else ()
        return self.graph.input(INPUT, FLOAT, (self.batch, 3, *frames, *self.map_shape(1)))

    def map_shape(self, stride: int) -> tuple[int | str, int | str]:
        """Height and width of a map, for the declaration of an input or output."""
        if self.sizes.fixed:
            return self.sizes.opt[0] // stride, self.sizes.opt[1] // stride
        return ("height", "width") if stride == 1 else (f"height/{stride}", f"width/{stride}")

    def attend_scoring(
        self, x: str, block: int, tokens: int | str, over_heads: str
    ) -> tuple[str, str]:
        """The block's first half, and what it scores: the class token's attention.

        Args:
            over_heads: the operator that makes one score of those of all heads.

        Returns:
            Rows `[B * tokens, C]`, and the attention to all other tokens `[B, tokens - 1]`.
        """
        graph, grid = self.graph, self.grid_of(tokens)
        scores = []

        def attend(qkv: QKV) -> str:
            query, key, _ = qkv
            weights = class_attention(graph, query, key, tokens, grid.num_heads, grid.head_dim)
            score = graph.op(over_heads, weights, graph.constant([1]), keepdims=0)
            scores.append(graph.slice(score, 1, tokens if isinstance(tokens, int) else INT64_MAX))
            return attention(graph, qkv, tokens, grid.num_heads, grid.head_dim)

        x = self.layers.attend(x, f"blocks.{block}", self.config.block_eps, attend)
        return x, scores[0]

    def patches_of(self, rows: str, added: int = 0) -> str:
        """Rows `[B * (S + added), C]` of all tokens -> those of the patches `[B * N, C]`."""
        graph, config = self.graph, self.config
        if not config.prefix_tokens and not added:
            return rows
        split = graph.reshape(rows, -1, total(graph, self.num_tokens, added), config.embed_dim)
        patches = graph.slice(split, config.prefix_tokens, -added if added else INT64_MAX)
        return graph.reshape(patches, -1, config.embed_dim)

    def with_patches(self, rows: str, patches: str, added: int = 0) -> str:
        """Rows `[B * (S + added), C]` of all tokens with other patches `[B * N, C]`."""
        graph, config = self.graph, self.config
        prefix, width = config.prefix_tokens, config.embed_dim
        if not prefix and not added:
            return patches
        split = graph.reshape(rows, -1, total(graph, self.num_tokens, added), width)
        first = graph.slice(split, 0, prefix)
        batch = graph.op("Concat", graph.shape(first, 0), graph.constant([-1, width]), axis=0)
        parts = [first, graph.op("Reshape", patches, batch)]
        if added:
            parts.append(graph.slice(split, -added, INT64_MAX))
        return graph.reshape(graph.op("Concat", *parts, axis=1), -1, width)

    def add_gate_outputs(self, decided: Sequence[Decided]) -> None:
        """`keep_mask`, `margin` and, where tokens are merged, `source` `[B, G, S]`.

        With a budget `overflow` `[B, G]`, too. Nothing where no gate decides or none is shown.
        """
        if not decided or not self.options.gate_outputs:
            return
        graph, count, width = self.graph, len(decided), self.mask_width
        shape = ("batch", count, width if isinstance(width, int) else "tokens")

        def stack(values: Sequence[str]) -> str:
            return graph.reshape(graph.op("Concat", *values, axis=1), -1, count, width)

        with graph.scope("gate_outputs"):
            keep = stack([d.keep for d in decided])
            margin = stack([d.margin for d in decided])
            overflow = [d.overflow for d in decided if d.overflow is not None]
            if overflow:
                overflow = [graph.op("Concat", *overflow, axis=1)]
            source = [d.source for d in decided if d.source is not None]
            if source:
                source = [stack(source)]
        graph.output(graph.rename(keep, KEEP_MASK), BOOL, shape)
        graph.output(graph.rename(margin, MARGIN), FLOAT, shape)
        for value in overflow:
            graph.output(graph.rename(value, OVERFLOW), INT64, ("batch", count))
        for value in source:
            graph.output(graph.rename(value, SOURCE), INT64, shape)
