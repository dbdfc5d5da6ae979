"""EViT: the class token's attention ranks the tokens; those that go may be fused into one.

Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token
Reorganizations", ICLR 2022; the numbers are those of youweiliang/evit @ 5ca95a7c.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from svit_deploy.config import ModelConfig, TokenMode, check_ratios
from svit_deploy.export.builder import FLOAT
from svit_deploy.export.names import INPUT, block_name, decision_name, margin_name
from svit_deploy.export.rows import flat_rows, gather_rows, with_prefix
from svit_deploy.export.survivors import Survivors
from svit_deploy.export.tokens import Decided, attend_to_all, attention_margin, top_tokens
from svit_deploy.export.vit import VitGraph
from svit_deploy.methods.method import Method, Selected, Values
from svit_deploy.methods.trace import ranked_values, trace_survivors

if TYPE_CHECKING:
    from torch import Tensor

    from svit_deploy.models.reference import Passed, Reference


@dataclass(frozen=True)
class EvitSettings:
    """What a training of EViT chooses.

    Attributes:
        keep_rate: the share of tokens that each selection keeps of those it finds.
        fuse: whether those that go are summed up in one more token.
        prune_blocks: the blocks that select, between their attention and their MLP.
    """

    keep_rate: float
    fuse: bool
    prune_blocks: tuple[int, ...] = (3, 6, 9)


class EvitGraph(VitGraph):
    def run(self, x: str) -> tuple[str, Sequence[Decided]]:
        config, graph, tokens = self.config, self.graph, self.config.num_tokens
        survivors = Survivors(graph, INPUT, self.method.columns(config), tokens, 1)
        stage_of = config.gate_of
        decided: list[Decided] = []
        for block in range(config.depth):
            with graph.scope(f"block_{block}"):
                if (stage := stage_of.get(block)) is None:
                    x = self.block(x, block, attend_to_all(graph, self.grid_of(tokens)))
                else:
                    x, score = self.attend_scoring(x, block, tokens, "ReduceMean")
                    with graph.scope("select"):
                        x, tokens, chosen = self.prune(x, score, tokens, stage, survivors)
                    decided.append(chosen)
                    x = self.layers.feed_forward(x, f"blocks.{block}", config.block_eps)
            x = graph.rename(x, block_name(block))
        return self.classify(x, tokens), decided

    def prune(
        self, x: str, score: str, tokens: int, stage: int, survivors: Survivors
    ) -> tuple[str, int, Decided]:
        """The class token, the best tokens in their order, and the sum of the others if fused."""
        config, graph, width = self.config, self.graph, self.config.embed_dim
        count = self.method.kept(config)[stage] - 1
        margin = graph.rename(attention_margin(graph, score), margin_name(stage))
        kept = graph.rename(top_tokens(graph, margin, count), decision_name(stage))
        places = with_prefix(graph, kept, 1)
        margin = survivors.spread(margin)
        chosen = Decided(survivors.keep(places), margin)
        rows = gather_rows(graph, x, flat_rows(graph, places, tokens))
        if not fuses(config, tokens - 1):
            return rows, count + 1, chosen
        zeros = graph.op("Mul", graph.op("Cast", kept, to=FLOAT), graph.constant(0, np.float32))
        weights = graph.op("ScatterElements", score, kept, zeros, axis=1)
        weights = graph.op("Unsqueeze", graph.narrow(weights), graph.constant([1]))
        split = graph.reshape(x, -1, tokens, width)
        patches = graph.slice(split, 1, tokens)
        fused = graph.op("MatMul", weights, patches)  # [B, 1, C]
        split = graph.op("Concat", graph.reshape(rows, -1, count + 1, width), fused, axis=1)
        survivors.add(config.num_tokens + stage)
        return graph.reshape(split, -1, width), count + 2, chosen


class Evit(Method):
    """On DeiT's weights. Column S + g of a keep mask is the token that selection g fused."""

    name, title, keys_of = "evit", "EViT", "deit"
    modes = (TokenMode.STATIC, TokenMode.DENSE)
    settings: ClassVar[type | None] = EvitSettings
    graph = EvitGraph
    ranks_inside = True
    removes = True
    margin_unit = 1.0  # of the attention's logarithm

    def told(self, args: Mapping[str, Any]) -> dict[str, Any] | None:
        if "base_keep_rate" not in args:
            return None
        found: dict[str, Any] = {"keep_rate": float(args["base_keep_rate"])}
        if "fuse_token" in args:
            found["fuse"] = bool(args["fuse_token"])
        if numbers := re.findall(r"\d+", str(args.get("drop_loc", ""))):
            found["prune_blocks"] = tuple(map(int, numbers))
        return found

    def check(self, config: ModelConfig) -> None:
        check_ratios((config.settings.keep_rate,), "keep_rate")
        self.refuse_distillation_token(config)

    def columns(self, config: ModelConfig) -> int:
        return config.num_tokens + (config.num_gates if config.settings.fuse else 0)

    def kept(self, config: ModelConfig) -> tuple[int, ...]:
        return tuple(count + 1 for _, count in stages(config))

    def values(self, config: ModelConfig) -> Values:
        found = stages(config)
        return ranked_values([entering for entering, _ in found], [kept for _, kept in found])

    def trace(self, config: ModelConfig, values: Mapping[str, np.ndarray], batch: int) -> Selected:
        added = {
            stage: config.num_tokens + stage
            for stage, (entering, _) in enumerate(stages(config))
            if fuses(config, entering)
        }
        return trace_survivors(config, values, batch, self.columns(config), added)

    def forward(self, reference: Reference, images: Tensor) -> Passed:
        import torch

        from svit_deploy.models.reference import Passed

        config = reference.config
        stage_of = config.gate_of
        x = reference.embed(images)
        maps = [x]
        values: dict[str, Tensor] = {}
        for block in range(config.depth):
            x, weights, _ = reference.attention(x, block)
            if (stage := stage_of.get(block)) is not None:
                score = weights[:, :, 0, 1:].mean(dim=1)
                count = math.ceil(config.settings.keep_rate * score.shape[1])
                order = score.argsort(dim=1, descending=True, stable=True)
                kept, gone = order[:, :count], order[:, count:].sort(dim=1).values
                parts = [x[:, :1], torch.take_along_dim(x[:, 1:], kept[..., None], dim=1)]
                if config.settings.fuse and count < score.shape[1]:
                    share = torch.take_along_dim(score, gone, dim=1)[..., None]
                    others = torch.take_along_dim(x[:, 1:], gone[..., None], dim=1)
                    parts.append((others * share).sum(dim=1, keepdim=True))
                x = torch.cat(parts, dim=1)
                values |= {margin_name(stage): score.log(), decision_name(stage): kept}
            x = reference.feed_forward(x, block)
            maps.append(x)
        return Passed(reference.classify(x), maps, values)


def stages(config: ModelConfig) -> list[tuple[int, int]]:
    """Tokens ranked and kept at each selection; a fused token is ranked by those after it."""
    found, entering = [], config.num_patches
    for _ in range(config.num_gates):
        kept = math.ceil(config.settings.keep_rate * entering)
        found.append((entering, kept))
        entering = kept + fuses(config, entering)
    return found


def fuses(config: ModelConfig, entering: int) -> bool:
    """Whether a selection among `entering` tokens leaves any to fuse."""
    return config.settings.fuse and math.ceil(config.settings.keep_rate * entering) < entering
