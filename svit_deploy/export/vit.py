"""A (token-pruned) Vision Transformer classifier as an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from svit_deploy.compare import first_gated
from svit_deploy.config import ModelConfig, TokenMode
from svit_deploy.export.builder import BOOL, FLOAT, INT64, GraphBuilder
from svit_deploy.export.layers import Attend, Layers
from svit_deploy.export.names import (
    EMBEDDING,
    INPUT,
    KEEP_MASK,
    LOGITS,
    MARGIN,
    OVERFLOW,
    block_name,
    decision_name,
    margin_name,
    threshold_name,
)
from svit_deploy.export.tokens import (
    Selection,
    TokenGrid,
    attend_to_all,
    select_budget,
    select_dynamic,
    select_masked,
)
from svit_deploy.models import Model
from svit_deploy.models.positions import interpolate_positions


@dataclass
class VitGraph:
    """Writes one model in one token mode.

    Args:
        model: configuration and canonical weights.
        mode: token mode.
        budgets: in `budget` mode, the gated tokens each gate may keep.
        gate_outputs: add `keep_mask`, `margin` and, with a budget, `overflow`.
        opset: ONNX operator set version.
    """

    model: Model
    mode: TokenMode
    budgets: Sequence[int] = ()
    gate_outputs: bool = True
    opset: int = 20
    graph: GraphBuilder = field(init=False)
    layers: Layers = field(init=False)

    def __post_init__(self) -> None:
        self.graph = GraphBuilder(f"{self.config.family}_{self.mode.value}", self.opset)
        self.layers = Layers(self.graph, self.model.weights)

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def grid(self) -> TokenGrid:
        config = self.config
        return TokenGrid(config.num_tokens, config.num_heads, config.embed_dim // config.num_heads)

    def build(self) -> onnx.ModelProto:
        """The whole graph: `images [batch, 3, H, W]` -> `logits [batch, classes]`, …"""
        config, graph = self.config, self.graph
        gate_of = {block: gate for gate, block in enumerate(config.gate_blocks)}
        if self.mode is TokenMode.DENSE:
            gate_of = {}
        selections: list[Selection] = []
        x = self.embed(graph.input(INPUT, FLOAT, ("batch", 3, *config.image_size)))
        for block in range(config.depth):
            with graph.scope(f"block_{block}"):
                if block in gate_of:
                    selection = self.select(x, gate_of[block])
                    selections.append(selection)
                    taken = selection.take(x)
                    x = selection.put(x, taken, self.block(taken, block, selection.attend))
                else:
                    x = self.block(x, block, attend_to_all(graph, self.grid))
            x = graph.rename(x, block_name(block))
        graph.output(self.classify(x), FLOAT, ("batch", config.num_classes))
        if selections and self.gate_outputs:
            self.add_gate_outputs(selections)
        return graph.model()

    def block(self, rows: str, block: int, attend: Attend) -> str:
        return self.layers.block(rows, f"blocks.{block}", self.config.block_eps, attend)

    def embed(self, images: str) -> str:
        """Patches, prefix tokens and positions: `[B, 3, H, W]` -> rows `[B * S, C]`."""
        config, graph, layers = self.config, self.graph, self.layers
        patch, width = config.patch_size, config.embed_dim
        positions = interpolate_positions(
            layers.weights["pos_embed"], config.prefix_tokens, config.native_grid, config.grid
        )
        prefix_positions, patch_positions = np.split(positions, [config.prefix_tokens], axis=1)
        prefix_names = ("cls_token", "dist_token")[: config.prefix_tokens]
        prefix = np.concatenate([layers.weights[name] for name in prefix_names], axis=1)
        with graph.scope("embedding"):
            weight = layers.weight("patch_embed.proj.weight")
            bias = layers.weight("patch_embed.proj.bias")
            patches = graph.op(
                "Conv", images, weight, bias, kernel_shape=(patch, patch), strides=(patch, patch)
            )
            patches = graph.reshape(patches, 0, width, config.num_patches)
            patches = graph.op("Transpose", patches, perm=(0, 2, 1))
            patches = graph.op("Add", patches, graph.weight("patch_positions", patch_positions))
            prefix_rows = graph.weight("prefix_tokens", prefix + prefix_positions)
            batch = graph.op("Concat", graph.shape(images, 0), graph.constant([1, 1]), axis=0)
            tokens = graph.op("Concat", graph.op("Expand", prefix_rows, batch), patches, axis=1)
            rows = graph.reshape(tokens, -1, width)
        return graph.rename(rows, EMBEDDING)

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
        """Keep logit minus prune logit `[R, 1]`, as one product with the rows' difference."""
        graph, layers = self.graph, self.layers
        hidden = layers.linear(
            layers.layer_norm(x, f"{name}.norm", self.config.gate_eps), f"{name}.mlp.fc1"
        )
        keep_weight, prune_weight = np.split(layers.weights[f"{name}.mlp.fc2.weight"], 2)
        keep_bias, prune_bias = np.split(layers.weights[f"{name}.mlp.fc2.bias"], 2)
        weight = graph.weight(f"{name}.margin.weight", keep_weight - prune_weight)
        bias = graph.weight(f"{name}.margin.bias", keep_bias - prune_bias)
        return graph.op("Gemm", graph.op("Gelu", hidden), weight, bias, transB=1)

    def classify(self, x: str) -> str:
        """Final norm and head on the class token; a distilled model averages two heads."""
        config, graph, layers = self.config, self.graph, self.layers
        with graph.scope("head"):
            tokens = graph.reshape(x, -1, config.num_tokens, config.embed_dim)
            logits = []
            for position, head in enumerate(("head", "head_dist")[: config.prefix_tokens]):
                token = graph.op("Gather", tokens, graph.constant(position), axis=1)
                norm = layers.layer_norm(token, "norm", config.norm_eps)
                logits.append(layers.linear(norm, head))
            if config.distilled:
                both = graph.op("Add", *logits)
                logits = [graph.op("Mul", both, graph.constant(0.5, np.float32))]
        return graph.rename(logits[0], LOGITS)

    def add_gate_outputs(self, selections: Sequence[Selection]) -> None:
        """`keep_mask`, `margin` `[B, G, S]` and, with a budget, `overflow` `[B, G]`."""
        graph, tokens = self.graph, self.grid.num_tokens
        length = tokens if isinstance(tokens, int) else "tokens"

        def stack(values: Sequence[str]) -> str:
            return graph.reshape(graph.op("Concat", *values, axis=1), -1, len(values), tokens)

        with graph.scope("gate_outputs"):
            keep = stack([selection.keep for selection in selections])
            margin = stack([margin_name(gate) for gate in range(len(selections))])
            overflow = [s.overflow for s in selections if s.overflow is not None]
            if overflow:
                overflow = [graph.op("Concat", *overflow, axis=1)]
        graph.output(graph.rename(keep, KEEP_MASK), BOOL, ("batch", len(selections), length))
        graph.output(graph.rename(margin, MARGIN), FLOAT, ("batch", len(selections), length))
        for value in overflow:
            graph.output(graph.rename(value, OVERFLOW), INT64, ("batch", len(selections)))
