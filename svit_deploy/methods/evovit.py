"""Evo-ViT: informative tokens are computed, placeholders wait, and each stage chooses anew.

Xu et al., "Evo-ViT: Slow-Fast Token Evolution for Dynamic Vision Transformer", AAAI 2022; the
numbers are those of YifanXu74/Evo-ViT @ 4c5d9b30, its DeiT family as it is evaluated: selection
stage by stage, placeholders left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from svit_deploy.config import ModelConfig, TokenMode, check_ratios
from svit_deploy.errors import InputError
from svit_deploy.export.names import INPUT, LOGITS, block_name, decision_name, margin_name
from svit_deploy.export.rows import flat_rows, gather_rows, scatter_rows, with_prefix
from svit_deploy.export.survivors import Survivors
from svit_deploy.export.tokens import Decided, attention_margin, top_tokens
from svit_deploy.export.vit import VitGraph
from svit_deploy.methods.keys import Dims, Shape, linear
from svit_deploy.methods.method import Method, Selected, Values
from svit_deploy.methods.trace import blank, ranked_values

if TYPE_CHECKING:
    from torch import Tensor

    from svit_deploy.models.reference import Passed, Reference

OFFICIAL = {
    "norm1": "norms.{}",
    "attn.qk": "qks.{}.qk",
    "attn.v": "vs.{}.v",
    "attn.proj": "projs.{}",
}


@dataclass(frozen=True)
class EvoVitSettings:
    """Published models have the defaults.

    Attributes:
        prune_ratio: the share of patches that are informative in each stage.
        prune_blocks: the block, counted from 0, that each stage begins with.
        tradeoff: the weight of a block's own attention in the ranking, from the first stage on.
    """

    prune_ratio: tuple[float, ...] = (0.5, 0.5)
    prune_blocks: tuple[int, ...] = (4, 8)
    tradeoff: float = 0.5


class EvoVitGraph(VitGraph):
    """The ranking `[B, N]` and the map `[B * S, C]` stay in the image's order throughout."""

    def run(self, x: str) -> tuple[str, Sequence[Decided]]:
        config, graph, tokens = self.config, self.graph, self.config.num_tokens
        counts, starts = self.method.kept(config), config.gate_blocks
        stage_of = {block: stage for stage, block in enumerate(starts)}
        decided: list[Decided] = []
        computed, score, ranking, rows, kept = x, "", "", "", ""
        for block in range(config.depth):
            with graph.scope(f"block_{block}"):
                if (stage := stage_of.get(block)) is not None:
                    with graph.scope("select"):
                        margin = attention_margin(graph, score)
                        margin = graph.rename(margin, margin_name(stage))
                        kept = top_tokens(graph, margin, counts[stage] - 1)
                        kept = graph.rename(kept, decision_name(stage))
                        decided.append(self.told(margin, kept))
                        tokens, ranking = counts[stage], score
                        places = with_prefix(graph, kept, 1)
                        rows = flat_rows(graph, places, config.num_tokens)
                        computed = gather_rows(graph, x, rows)
                        score = graph.op("GatherElements", score, kept, axis=1)
                computed, attended = self.attend_scoring(computed, block, tokens, "ReduceSum")
                computed = self.layers.feed_forward(computed, f"blocks.{block}", config.block_eps)
                score = self.update(score, attended) if decided else attended
                if not decided:
                    x = computed = graph.rename(computed, block_name(block))
                elif block + 1 in (*starts, config.depth):  # the stage ends: all tokens again
                    x = graph.rename(scatter_rows(graph, x, rows, computed), block_name(block))
                    score = graph.op("ScatterElements", ranking, kept, score, axis=1)
                else:
                    computed = graph.rename(computed, block_name(block))
        return self.classify(x), decided

    def update(self, score: str, attended: str) -> str:
        """Both `[B, K]`, of the informative tokens."""
        graph, share = self.graph, self.config.settings.tradeoff
        old = graph.op("Mul", score, graph.constant(1 - share, np.float32))
        return graph.op("Add", old, graph.op("Mul", attended, graph.constant(share, np.float32)))

    def told(self, margin: str, kept: str) -> Decided:
        """All tokens are still there: only those after the prefix are ranked."""
        tokens = self.config.num_tokens
        books = Survivors(self.graph, INPUT, tokens, tokens, 1)
        margin = books.spread(margin)
        return Decided(books.keep(with_prefix(self.graph, kept, 1)), margin)

    def classify(self, x: str, tokens: int | None = None) -> str:
        """The mean of all patches, then norm and head."""
        config, graph = self.config, self.graph
        with graph.scope("head"):
            split = graph.widen(graph.reshape(x, -1, config.num_tokens, config.embed_dim))
            patches = graph.slice(split, 1, config.num_tokens)
            mean = graph.op("ReduceMean", patches, graph.constant([1]), keepdims=0)
            norm = self.layers.layer_norm(mean, "norm", config.norm_eps)
            return graph.rename(self.layers.exact_linear(norm, "head"), LOGITS)


class EvoVit(Method):
    """Its attention keeps `attn.qk` and `attn.v` apart; `norm_cls`, `head_cls` are for training."""

    name, title = "evovit", "Evo-ViT"
    modes = (TokenMode.STATIC, TokenMode.DENSE)
    settings = EvoVitSettings
    graph = EvoVitGraph
    ranks_inside = True
    margin_unit = 1.0  # of the attention's logarithm

    def matches(self, keys: Collection[str]) -> bool:
        return any(key.startswith("qks.") for key in keys)

    def is_spare(self, key: str) -> bool:
        return key.startswith(("norm_cls.", "head_cls."))

    def official_name(self, name: str) -> str:
        found = re.fullmatch(r"blocks\.(\d+)\.(norm1|attn\.qk|attn\.v|attn\.proj)\.(\w+)", name)
        return f"{OFFICIAL[found[2]].format(found[1])}.{found[3]}" if found else name

    def shapes(self, dims: Dims) -> dict[str, Shape]:
        shapes, width = super().shapes(dims), dims.embed_dim
        for block in range(dims.depth):
            name = f"blocks.{block}.attn"
            del shapes[f"{name}.qkv.weight"], shapes[f"{name}.qkv.bias"]
            shapes |= linear(f"{name}.qk", 2 * width, width) | linear(f"{name}.v", width, width)
        return shapes

    def check(self, config: ModelConfig) -> None:
        settings: EvoVitSettings = config.settings
        check_ratios((*settings.prune_ratio, settings.tradeoff), "prune_ratio and tradeoff")
        if len(settings.prune_ratio) != len(settings.prune_blocks) or 0 in settings.prune_blocks:
            raise InputError(
                f"prune_ratio has {len(settings.prune_ratio)} values for stages that begin with "
                f"blocks {list(settings.prune_blocks)}",
                "give a ratio for each stage, and let the first begin after block 0",
            )
        if config.distilled:
            raise InputError("Evo-ViT has no distillation token", "give another checkpoint")
        if config.gate_blocks and min(self.kept(config)) < 2:
            raise InputError(
                f"{config.num_patches} patches are too few for the ratios "
                f"{list(config.settings.prune_ratio)}",
                "use a larger image",
            )

    def kept(self, config: ModelConfig) -> tuple[int, ...]:
        ratios = config.settings.prune_ratio[: config.num_gates]
        return tuple(1 + int(config.num_patches * ratio) for ratio in ratios)

    def values(self, config: ModelConfig) -> Values:
        kept = [count - 1 for count in self.kept(config)]
        return ranked_values([config.num_patches] * len(kept), kept)

    def trace(self, config: ModelConfig, values: Mapping[str, np.ndarray], batch: int) -> Selected:
        keep, margin = blank(config, batch, config.num_tokens)
        for gate in range(config.num_gates):
            margin[:, gate, 1:] = values[margin_name(gate)]
            np.put_along_axis(keep[:, gate, 1:], values[decision_name(gate)], True, axis=1)
        return Selected(keep, margin)

    def forward(self, reference: Reference, images: Tensor) -> Passed:
        import torch

        from svit_deploy.models.reference import Passed

        config = reference.config
        stage_of = config.gate_of
        x = reference.embed(images)
        maps = [x]
        values: dict[str, Tensor] = {}
        kept = None
        score = torch.zeros(len(x), config.num_patches)
        for block in range(config.depth):
            if (stage := stage_of.get(block)) is not None:
                count = int(config.num_patches * config.settings.prune_ratio[stage])
                kept = score.argsort(dim=1, descending=True, stable=True)[:, :count]
                values |= {margin_name(stage): score.log(), decision_name(stage): kept}
            if kept is None:
                x, weights, _ = reference.attention(x, block)
                x = reference.feed_forward(x, block)
                score = weights[:, :, 0, 1:].sum(dim=1)
                maps.append(x)
                continue
            chosen = torch.cat([torch.zeros(len(x), 1, dtype=torch.long), kept + 1], dim=1)
            part = torch.take_along_dim(x, chosen[..., None], dim=1)
            part, weights, _ = reference.attention(part, block)
            part = reference.feed_forward(part, block)
            share = config.settings.tradeoff
            own = torch.take_along_dim(score, kept, dim=1)
            own = (1 - share) * own + share * weights[:, :, 0, 1:].sum(dim=1)
            score = score.scatter(1, kept, own)
            x = x.scatter(1, chosen[..., None].expand_as(part), part)
            ends = block + 1 in (*config.gate_blocks, config.depth)
            maps.append(x if ends else part)
        x = reference.norm(x[:, 1:].mean(dim=1), "norm", reference.norm_eps)
        return Passed(reference.linear(x, "head"), maps, values)
