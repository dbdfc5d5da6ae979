"""A (token-pruned) Vision Transformer classifier as an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx

from svit_deploy.compare import first_gated
from svit_deploy.config import ModelConfig, TokenMode
from svit_deploy.export.builder import BFLOAT16, BOOL, FLOAT, INT64, GraphBuilder
from svit_deploy.export.layers import QKV, Attend, Layers, attention, class_attention
from svit_deploy.export.names import (
    EMBEDDING,
    INPUT,
    KEEP_MASK,
    LOGITS,
    MARGIN,
    OVERFLOW,
    SOURCE,
    block_name,
    decision_name,
    margin_name,
    packed_name,
    threshold_name,
)
from svit_deploy.export.tokens import (
    Decided,
    Selection,
    TokenGrid,
    attend_to_all,
    select_budget,
    select_dynamic,
    select_masked,
)

if TYPE_CHECKING:
    from svit_deploy.methods import Method
    from svit_deploy.models import Model


@dataclass
class VitGraph:
    """Writes one model in one token mode.

    Args:
        model: configuration and canonical weights.
        mode: token mode.
        budgets: in `budget` mode, the gated tokens each gate may keep.
        gate_outputs: add `keep_mask`, `margin` and, with a budget, `overflow`.
        opset: ONNX operator set version.
        precision: fp32, fp16 or bf16. Inputs, outputs and gates are float32 in any of them.
        plugins: write row moves as nodes that the TensorRT plugins implement.
    """

    model: Model
    mode: TokenMode
    budgets: Sequence[int] = ()
    gate_outputs: bool = True
    opset: int = 20
    precision: str = "fp32"
    plugins: bool = False
    graph: GraphBuilder = field(init=False)
    layers: Layers = field(init=False)

    def __post_init__(self) -> None:
        self.graph = GraphBuilder(
            f"{self.config.family}_{self.mode.value}", self.opset, self.precision, self.plugins
        )
        self.layers = Layers(self.graph, self.model.weights)

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def grid(self) -> TokenGrid:
        return self.grid_of(self.config.num_tokens)

    def grid_of(self, tokens: int) -> TokenGrid:
        """The layout of attention among `tokens` of each image."""
        config = self.config
        return TokenGrid(tokens, config.num_heads, config.embed_dim // config.num_heads)

    @property
    def method(self) -> Method:
        from svit_deploy.methods import method_of

        return method_of(self.config)

    def build(self) -> onnx.ModelProto:
        """The whole graph: `images [batch, 3, H, W]` -> `logits [batch, classes]`, …"""
        config, graph = self.config, self.graph
        x = self.embed(graph.input(INPUT, FLOAT, ("batch", 3, *config.image_size)))
        logits, decided = self.run(x)
        graph.output(logits, FLOAT, ("batch", config.num_classes))
        if decided and self.gate_outputs:
            self.add_gate_outputs(decided)
        return graph.model()

    def run(self, x: str) -> tuple[str, Sequence[Decided]]:
        """From the embedded tokens `[B * S, C]` to the logits, with what was selected on the way.

        Here as SViT does it; without gates, as DeiT.
        """
        config, graph = self.config, self.graph
        gate_of = config.gate_of
        if self.mode is TokenMode.DENSE:
            gate_of = {}
        decided: list[Decided] = []
        for block in range(config.depth):
            with graph.scope(f"block_{block}"):
                if block in gate_of:
                    selection = self.select(x, gate_of[block])
                    margin = margin_name(gate_of[block])
                    decided.append(Decided(selection.keep, margin, overflow=selection.overflow))
                    taken = selection.take(x)
                    attend = self.packed(selection, block)
                    x = selection.put(x, taken, self.block(taken, block, attend))
                else:
                    x = self.block(x, block, attend_to_all(graph, self.grid))
            x = graph.rename(x, block_name(block))
        return self.classify(x), decided

    def block(self, rows: str, block: int, attend: Attend) -> str:
        return self.layers.block(rows, f"blocks.{block}", self.config.block_eps, attend)

    def attend_scoring(self, x: str, block: int, tokens: int, over_heads: str) -> tuple[str, str]:
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
            scores.append(graph.slice(score, 1, tokens))
            return attention(graph, qkv, tokens, grid.num_heads, grid.head_dim)

        x = self.layers.attend(x, f"blocks.{block}", self.config.block_eps, attend)
        return x, scores[0]

    def packed(self, selection: Selection, block: int) -> Attend:
        """The selection's attention, with names that a TensorRT build may put its own behind."""
        if not self.plugins or selection.lengths is None:
            return selection.attend
        graph = self.graph
        graph.rename(selection.lengths, packed_name(block, "lengths"))

        def attend(qkv: QKV) -> str:
            parts = zip(qkv, ("query", "key", "value"), strict=True)
            query, key, value = (graph.rename(t, packed_name(block, part)) for t, part in parts)
            mixed = selection.attend((query, key, value))
            return graph.rename(mixed, packed_name(block, "mixed"))

        return attend

    def embed(self, images: str) -> str:
        """Patches, prefix tokens and positions: `[B, 3, H, W]` -> rows `[B * S, C]`."""
        from svit_deploy.models.positions import interpolate_positions

        config, graph, layers = self.config, self.graph, self.layers
        width = config.embed_dim
        positions = interpolate_positions(
            layers.weights["pos_embed"], config.prefix_tokens, config.native_grid, config.grid
        )
        prefix_positions, patch_positions = np.split(positions, [config.prefix_tokens], axis=1)
        prefix_names = ("cls_token", "dist_token")[: config.prefix_tokens]
        prefix = [layers.weights[name] for name in prefix_names]
        with graph.scope("embedding"):
            patches = self.patches(graph.narrow(images))
            patches = graph.op(
                "Add", patches, layers.narrow_weight("patch_positions", patch_positions)
            )
            tokens = patches
            if prefix:
                table = np.concatenate(prefix, axis=1) + prefix_positions
                first = layers.narrow_weight("prefix_tokens", table)
                batch = graph.op("Concat", graph.shape(images, 0), graph.constant([1, 1]), axis=0)
                tokens = graph.op("Concat", graph.op("Expand", first, batch), patches, axis=1)
            rows = graph.reshape(tokens, -1, width)
        return graph.rename(rows, EMBEDDING)

    def patches(self, images: str) -> str:
        """The linear embedding of the patches: `[B, 3, H, W]` -> `[B, N, C]`."""
        config, graph, layers = self.config, self.graph, self.layers
        patch, width, (rows, columns) = config.patch_size, config.embed_dim, config.grid
        weight, bias = layers.weights["patch_embed.proj.weight"], "patch_embed.proj.bias"
        if graph.dtype == BFLOAT16:  # which the ONNX convolution does not take before opset 22
            split = graph.reshape(images, -1, 3, rows, patch, columns, patch)
            split = graph.op("Transpose", split, perm=(0, 2, 4, 1, 3, 5))
            pixels = graph.reshape(split, -1, 3 * patch * patch)
            flat = layers.narrow_weight("patch_embed.proj.weight", weight.reshape(width, -1))
            embedded = graph.op("Gemm", pixels, flat, layers.narrow_weight(bias), transB=1)
            return graph.reshape(embedded, -1, config.num_patches, width)
        embedded = graph.op(
            "Conv",
            images,
            layers.narrow_weight("patch_embed.proj.weight"),
            layers.narrow_weight(bias),
            kernel_shape=(patch, patch),
            strides=(patch, patch),
        )
        embedded = graph.reshape(embedded, 0, width, config.num_patches)
        return graph.op("Transpose", embedded, perm=(0, 2, 1))

    def select(self, x: str, gate: int) -> Selection:
        """Runs a gate on the feature map `[B * S, C]` and selects the tokens of its block."""
        config, graph, grid = self.config, self.graph, self.grid
        prefix = 0 if config.gate_class_token[gate] else config.prefix_tokens
        with graph.scope("gate"):
            margin = graph.reshape(self.margin(x, f"gates.{gate}"), -1, grid.num_tokens)
            if prefix:
                always = [[token < prefix for token in range(config.num_tokens)]]
                infinity = graph.constant(np.inf, np.float32)
                margin = graph.op("Where", graph.constant(always, bool), infinity, margin)
            margin = graph.rename(margin, margin_name(gate))
            threshold = np.array(config.thresholds[gate], np.float32)
            decision = graph.op("Greater", margin, graph.weight(threshold_name(gate), threshold))
            decision = graph.rename(decision, decision_name(gate))
        with graph.scope("select"):
            if self.mode is TokenMode.DYNAMIC:
                return select_dynamic(graph, grid, decision)
            if self.mode is TokenMode.MASKED:
                return select_masked(graph, grid, decision)
            return select_budget(graph, grid, decision, margin, self.budget_rows(gate))

    def budget_rows(self, gate: int) -> int | str:
        """Rows per image that the gate's block may compute, always-kept ones included."""
        return self.budgets[gate] + first_gated(self.config, gate)

    def margin(self, x: str, name: str) -> str:
        """Keep logit minus prune logit `[R, 1]`.

        All of it in float32, whatever the graph's precision: a decision has no tolerance.
        """
        graph, layers = self.graph, self.layers
        hidden = layers.exact_linear(
            layers.layer_norm(x, f"{name}.norm", self.config.gate_eps), f"{name}.mlp.fc1"
        )
        return layers.difference(graph.op("Gelu", hidden), f"{name}.mlp.fc2", f"{name}.margin")

    def classify(self, x: str, tokens: int | None = None) -> str:
        """Final norm and head on the class token; a distilled model averages two heads.

        Args:
            x: rows `[B * tokens, C]`, of all S tokens by default.
        """
        config, graph, layers = self.config, self.graph, self.layers
        with graph.scope("head"):
            split = graph.reshape(x, -1, tokens or config.num_tokens, config.embed_dim)
            logits = []
            for position, head in enumerate(("head", "head_dist")[: config.prefix_tokens]):
                token = graph.op("Gather", split, graph.constant(position), axis=1)
                norm = layers.layer_norm(token, "norm", config.norm_eps)
                logits.append(layers.exact_linear(norm, head))
            if config.distilled:
                both = graph.op("Add", *logits)
                logits = [graph.op("Mul", both, graph.constant(0.5, np.float32))]
        return graph.rename(logits[0], LOGITS)

    @property
    def columns(self) -> int | str:
        """Tokens that the gate outputs tell about, a number or an int64 vector."""
        return self.method.columns(self.config)

    def classify_mean(self, x: str, tokens: int, width: int) -> str:
        """Final norm, the mean of the tokens, head, of rows `[B * tokens, width]`."""
        graph, layers = self.graph, self.layers
        with graph.scope("head"):
            norm = layers.layer_norm(x, "norm", self.config.norm_eps)
            norm = graph.reshape(norm, -1, tokens, width)
            mean = graph.op("ReduceMean", norm, graph.constant([1]), keepdims=0)
            return graph.rename(layers.exact_linear(mean, "head"), LOGITS)

    def add_gate_outputs(self, decided: Sequence[Decided]) -> None:
        """`keep_mask`, `margin` and, where tokens are merged, `source` `[B, G, S]`.

        With a budget `overflow` `[B, G]`, too.
        """
        graph, count, columns = self.graph, len(decided), self.columns
        shape = ("batch", count, columns if isinstance(columns, int) else "tokens")

        def stack(values: Sequence[str]) -> str:
            return graph.reshape(graph.op("Concat", *values, axis=1), -1, count, columns)

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
