"""SViT: gates that prune tokens of one block at a time, by content, and may take them back.

Liu et al., "Revisiting Token Pruning for Object Detection and Instance Segmentation", WACV 2024;
the numbers are those of uzh-rpg/svit @ d2472c13.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from svit_deploy.backbones.tokens import Decided, GatedForward, GraphTokens, ReferenceTokens
from svit_deploy.errors import InputError
from svit_deploy.graph.layers import QKV, Attend
from svit_deploy.graph.tokens import (
    Selection,
    budget_rows,
    select_budget,
    select_dynamic,
    select_masked,
)
from svit_deploy.methods.method import Gates, Method
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import TokenMode
from svit_deploy.model.keys import Shape, Tensors, linear, norm
from svit_deploy.names import decision_name, margin_name, packed_name, threshold_name

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_NAMES = {
    "attn.qkv.weight": "self_attn.in_proj_weight",
    "attn.qkv.bias": "self_attn.in_proj_bias",
    "attn.proj.weight": "self_attn.out_proj.weight",
    "attn.proj.bias": "self_attn.out_proj.bias",
    "mlp.fc1.weight": "linear1.weight",
    "mlp.fc1.bias": "linear1.bias",
    "mlp.fc2.weight": "linear2.weight",
    "mlp.fc2.bias": "linear2.bias",
}


class SvitGraph(GraphTokens):
    """A gated block computes the kept rows; the others keep their value."""

    def block(self, block: int) -> str:
        if (gate := self.config.gate_of.get(block)) is None:
            return super().block(block)
        selection = self.select(gate)
        margin = margin_name(gate)
        self.decided.append(Decided(selection.keep, margin, overflow=selection.overflow))
        return self.gated(block, selection)

    def gated(self, block: int, selection: Selection) -> str:
        """A block on the selected tokens."""
        taken = selection.take(self.rows)
        attend = self.packed(selection, block)
        return selection.put(self.rows, taken, self.writer.block(taken, block, attend))

    def select(self, gate: int) -> Selection:
        """Runs a gate on the feature map `[B * S, C]` and selects the tokens of its block."""
        graph, grid = self.graph, self.writer.grid
        with graph.scope("gate"):
            margin = self.margin(gate)
            margin = graph.rename(margin, margin_name(gate))
            threshold = np.array(self.config.thresholds[gate], np.float32)
            decision = graph.op("Greater", margin, graph.weight(threshold_name(gate), threshold))
            decision = graph.rename(decision, decision_name(gate))
        with graph.scope("select"):
            if self.writer.mode is TokenMode.DYNAMIC:
                return select_dynamic(graph, grid, decision)
            if self.writer.mode is TokenMode.MASKED:
                return select_masked(graph, grid, decision)
            budget = self.writer.options.budgets[gate]
            rows = budget_rows(graph, budget, grid.num_tokens)
            most = budget.rows(self.writer.most_tokens)
            return select_budget(graph, grid, decision, margin, rows, most=most)

    def margin(self, gate: int) -> str:
        """Keep logit minus prune logit `[B, S]`.

        All of it in float32, whatever the graph's precision: a decision has no tolerance.
        """
        config, graph, layers, name = self.config, self.graph, self.writer.layers, f"gates.{gate}"
        hidden = layers.exact_linear(
            layers.layer_norm(self.rows, f"{name}.norm", config.gate_eps), f"{name}.mlp.fc1"
        )
        margin = layers.difference(graph.op("Gelu", hidden), f"{name}.mlp.fc2", f"{name}.margin")
        margin = graph.reshape(margin, -1, self.writer.grid.num_tokens)
        if prefix := config.first_gated(gate):
            always = [[token < prefix for token in range(config.num_tokens)]]
            infinity = graph.constant(np.inf, np.float32)
            margin = graph.op("Where", graph.constant(always, bool), infinity, margin)
        return margin

    def packed(self, selection: Selection, block: int) -> Attend:
        """The selection's attention, with names that a TensorRT build may put its own behind."""
        if not self.writer.options.plugins or selection.lengths is None:
            return selection.attend
        graph = self.graph
        graph.rename(selection.lengths, packed_name(block, "lengths"))

        def attend(qkv: QKV) -> str:
            parts = zip(qkv, ("query", "key", "value"), strict=True)
            query, key, value = (graph.rename(t, packed_name(block, part)) for t, part in parts)
            mixed = selection.attend((query, key, value))
            return graph.rename(mixed, packed_name(block, "mixed"))

        return attend


class SvitReference(ReferenceTokens):
    """All tokens are computed, pruned keys are masked, pruned rows keep their value."""

    def block(self, block: int) -> GatedForward:
        import torch

        if (gate := self.config.gate_of.get(block)) is None:
            self.step(block)
            return
        margin = self.margin(gate)
        keep = yield gate, margin
        self.decided(keep)
        computed = self.backbone.block(self.rows, block, keep)
        self.rows = torch.where(keep[..., None], computed, self.rows)
        self.values |= {margin_name(gate): margin, decision_name(gate): keep}

    def decided(self, keep: Tensor) -> None:
        """Is told of a gate's keep mask `[B, S]`."""

    def margin(self, gate: int) -> Tensor:
        """Keep logit (channel 0) minus prune logit (channel 1) of every token `[B, S]`."""
        import torch
        from torch.nn.functional import gelu

        backbone, name = self.backbone, f"gates.{gate}"
        normed = backbone.norm(self.rows, f"{name}.norm", backbone.gate_eps)
        hidden = backbone.exact_linear(normed, f"{name}.mlp.fc1")
        keep, prune = backbone.exact_linear(gelu(hidden), f"{name}.mlp.fc2").unbind(-1)
        margin: Tensor = keep - prune
        if not self.config.gate_class_token[gate]:
            margin[:, : self.config.prefix_tokens] = torch.inf
        return margin


class Svit(Method):
    """Its weights have `gates.{g}.{norm, mlp.fc1, mlp.fc2}` beside DeiT's."""

    title = "SViT"
    modes = (TokenMode.DYNAMIC, TokenMode.BUDGET, TokenMode.MASKED, TokenMode.DENSE)
    rule = "keep iff margin > threshold, margin = keep logit - prune logit, a tie is pruned"
    trained_gates = True

    def matches(self, keys: Collection[str]) -> bool:
        gates = any(key.startswith("selective_modules.") for key in keys)
        if not gates and any(".TransformerEncoderLayer." in key for key in keys):
            raise InputError(
                "the checkpoint has SViT's blocks but no gates (selective_modules.*)",
                "give a checkpoint from after the gates were trained",
            )
        return gates

    def official_name(self, name: str) -> str:
        parts = name.split(".", 2)
        if parts[0] == "blocks":
            leaf = BLOCK_NAMES.get(parts[2], parts[2])
            return f"blocks.{parts[1]}.TransformerEncoderLayer.{leaf}"
        return re.sub(r"^gates\.", "selective_modules.", name)

    def infer(self, tensors: Tensors, dims: Any) -> Any:
        gate_dim = tensors.shape("selective_modules.0.mlp.fc1.weight", 2)[0]
        return replace(dims, num_gates=tensors.count("selective_modules"), gate_dim=gate_dim)

    def shapes(self, shapes: dict[str, Shape], dims: Any) -> dict[str, Shape]:
        for gate in range(dims.num_gates):
            shapes |= linear(f"gates.{gate}.mlp.fc1", dims.gate_dim, dims.embed_dim)
            shapes |= linear(f"gates.{gate}.mlp.fc2", 2, dims.gate_dim)
            shapes |= norm(f"gates.{gate}.norm", dims.embed_dim)
        return shapes

    def dims_from_arch(self, dims: Any, arch: Arch) -> Any:
        gates = len(arch.gate_blocks) or dims.depth
        return replace(dims, num_gates=gates, gate_dim=dims.embed_dim // 4)

    def gates(self, arch: Arch, dims: Any, settings: Any, class_token: bool) -> Gates:
        """In front of the last blocks; only the last one may prune a class token."""
        count = dims.num_gates
        blocks = arch.gate_blocks or tuple(range(dims.depth - count, dims.depth))
        if not class_token:
            return Gates(blocks, (True,) * count)
        pruned = arch.gate_class_token or tuple(g == count - 1 for g in range(count))
        return Gates(blocks, pruned)

    def graph(self, writer: Any, rows: str) -> SvitGraph:
        return SvitGraph(writer, rows)

    def reference(self, backbone: Any, x: Tensor) -> SvitReference:
        return SvitReference(backbone, x)
