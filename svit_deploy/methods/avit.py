"""A-ViT: each token halts by itself, at a depth that the content decides.

Yin et al., "A-ViT: Adaptive Tokens for Efficient Vision Transformer", CVPR 2022; written from the
paper, the numbers are those of NVlabs/A-ViT @ 120c9cb9. Its published weights are for
non-commercial use.

Behind every block a token that it computed has a halting score h = sigmoid(gate_scale * x[0] -
gate_center) of its own first channel. A token halts when its scores add up to more than 0.99, and
takes no part in later blocks. The class token is one of them: the logits are of the mean of its
states, each weighted with its score, the last with what is left to 1.

Once the class token has halted, nothing that other tokens do can reach the logits, so all tokens
of its image halt with it. That is one rule: the margin of a token is 0.99 minus its scores so far,
and no more than the class token's. So a budget cannot prune a class token before it halts, either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from svit_deploy.backbones.tokens import GatedForward, ReferenceTokens
from svit_deploy.errors import InputError
from svit_deploy.graph.tokens import Selection
from svit_deploy.methods.method import Gates, Method
from svit_deploy.methods.svit import SvitGraph
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig, TokenMode
from svit_deploy.names import decision_name, margin_name

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 0.99
"""What a token's scores may add up to before it halts: 1 - 0.01."""


@dataclass(frozen=True, kw_only=True)
class AvitSettings:
    """What a training of A-ViT chooses.

    Attributes:
        gate_scale, gate_center: of a halting score, sigmoid(gate_scale * x[0] - gate_center).
    """

    gate_scale: float
    gate_center: float


class AvitGraph(SvitGraph):
    """The map keeps the last state of a token that has halted.

    Attributes:
        score: halting scores of the last block `[B, S]`, those of halted tokens without meaning.
        room: what scores before it leave of `LIMIT` `[B, S]`; None before the first.
        active: tokens that the last block computed `[B, S]`; None for all.
        states: the class token behind every block so far, `[B, 1, C]` each.
        weights: theirs in the mean, `[B, 1]` each, 0 where it has halted before. All float32.
    """

    score = ""
    room: str | None = None
    active: str | None = None

    def __init__(self, writer: Any, rows: str) -> None:
        super().__init__(writer, rows)
        self.states: list[str] = []
        self.weights: list[str] = []

    def select(self, gate: int) -> Selection:
        with self.graph.scope("halt"):
            left = self.left()
        selection = super().select(gate)
        with self.graph.scope("halt"):
            goes_on = self.graph.slice(selection.keep, 0, 1)
            first = self.graph.slice(self.score, 0, 1)
            self.add(self.graph.op("Where", goes_on, first, left))
        self.active = selection.keep
        return selection

    def margin(self, gate: int) -> str:
        """How far from halting a token is, and its class token."""
        graph, settings = self.graph, self.config.settings
        first = graph.slice(graph.to_float32(self.rows), 0, 1)
        first = graph.reshape(first, -1, self.writer.grid.num_tokens)
        scale, center = (
            graph.constant(value, np.float32)
            for value in (settings.gate_scale, settings.gate_center)
        )
        self.score = graph.op("Sigmoid", graph.op("Sub", graph.op("Mul", first, scale), center))
        limit = graph.constant(LIMIT, np.float32)
        self.room = graph.op("Sub", self.room or limit, self.score)
        margin = graph.op("Min", self.room, graph.slice(self.room, 0, 1))
        if self.active is not None:
            gone = graph.constant(-np.inf, np.float32)
            margin = graph.op("Where", self.active, margin, gone)
        return margin

    def left(self) -> str:
        """What the class token's scores so far leave of 1, `[B, 1]`, or 1 itself."""
        graph = self.graph
        if self.room is None:
            return graph.constant(1, np.float32)
        first = graph.slice(self.room, 0, 1)
        return graph.op("Add", first, graph.constant(1 - LIMIT, np.float32))

    def add(self, weight: str) -> None:
        """Takes the class token's state, its weight `[B, 1]` where the last block computed it."""
        graph, tokens = self.graph, self.writer.grid.num_tokens
        if self.active is not None:
            active = graph.slice(self.active, 0, 1)
            weight = graph.op("Where", active, weight, graph.constant(0, np.float32))
        split = graph.reshape(graph.to_float32(self.rows), -1, tokens, self.config.embed_dim)
        self.states.append(graph.slice(split, 0, 1))
        self.weights.append(weight)

    def for_head(self) -> tuple[str, int | str]:
        if self.active is None:
            return super().for_head()
        graph = self.graph
        with graph.scope("halt"):
            self.add(self.left())
            weights = graph.op("Concat", *self.weights, axis=1)
            weights = graph.reshape(weights, -1, 1, len(self.weights))
            mean = graph.op("MatMul", weights, graph.op("Concat", *self.states, axis=1))
        return graph.reshape(mean, -1, self.config.embed_dim), 1


class AvitReference(ReferenceTokens):
    """Halted tokens are masked as keys, and their rows keep their value."""

    def __init__(self, backbone: Any, rows: Tensor) -> None:
        import torch

        super().__init__(backbone, rows)
        self.active = torch.ones(rows.shape[:2], dtype=torch.bool)
        self.remainder = torch.ones(rows.shape[:2])
        self.cumulative = torch.zeros(rows.shape[:2])
        self.mean = torch.zeros(len(rows), rows.shape[2])

    def block(self, block: int) -> GatedForward:
        import torch

        if (gate := self.config.gate_of.get(block)) is None:
            self.step(block)
            return
        settings = self.config.settings
        score = torch.sigmoid(self.rows[..., 0] * settings.gate_scale - settings.gate_center)
        self.cumulative = self.cumulative + score
        margin = LIMIT - self.cumulative
        margin = torch.minimum(margin, margin[:, :1]).masked_fill(~self.active, -torch.inf)
        keep = yield gate, margin
        self.accumulate(torch.where(keep, score, self.remainder))
        self.remainder = self.remainder - score
        self.active = keep
        computed = self.backbone.block(self.rows, block, keep)
        self.rows = torch.where(keep[..., None], computed, self.rows)
        self.values |= {margin_name(gate): margin, decision_name(gate): keep}

    def accumulate(self, weights: Tensor) -> None:
        """Takes the class tokens that the last block computed into their mean."""
        share = weights[:, :1] * self.active[:, :1]
        self.mean = self.mean + share * self.rows[:, 0]

    def for_head(self) -> Tensor:
        if not self.config.gate_blocks:
            return self.rows
        self.accumulate(self.remainder)
        return self.mean[:, None]


class Avit(Method):
    """On DeiT's weights, without parameters of its own; a gate in front of each block but one."""

    title = "A-ViT"
    modes = (TokenMode.DYNAMIC, TokenMode.BUDGET, TokenMode.MASKED, TokenMode.DENSE)
    settings = AvitSettings
    rule = (
        "go on iff margin > threshold, margin = 0.99 - halting scores so far, or the class token's"
    )
    removes = True
    margin_unit = 1.0  # of a halting score

    def settings_from_args(self, args: Mapping[str, Any]) -> dict[str, Any] | None:
        names = ("gate_scale", "gate_center")
        return {name: args[name] for name in names} if all(n in args for n in names) else None

    def gates(self, arch: Arch, dims: Any, settings: Any, class_token: bool) -> Gates:
        blocks = tuple(range(1, dims.depth))
        return Gates(blocks, (True,) * len(blocks))

    def places(self, config: ModelConfig) -> tuple[int, ...]:
        return tuple(range(1, config.depth))

    def check(self, config: ModelConfig) -> None:
        if not config.settings.gate_scale > 0:
            raise InputError(
                f"gate_scale is {config.settings.gate_scale:g}",
                "give the number that the model was trained with, for example 10",
            )
        self.refuse_distillation_token(config)

    def random(self, weights: dict[str, np.ndarray], settings: Mapping[str, Any]) -> None:
        """Lets the first channel rise from block to block, from a start that an image's content
        spreads: patches halt around two thirds of the depth, the class token near the end."""
        biases = [name for name in weights if name.endswith(".mlp.fc2.bias")]
        rise = 1.5 * settings["gate_center"] / settings["gate_scale"] / len(biases)
        for name in biases:
            weights[name][0] = rise
        weights["cls_token"][..., 0] = -rise * len(biases) / 3
        weights["patch_embed.proj.weight"][0] *= 2 * rise

    def graph(self, writer: Any, rows: str) -> AvitGraph:
        return AvitGraph(writer, rows)

    def reference(self, backbone: Any, x: Tensor) -> AvitReference:
        return AvitReference(backbone, x)
