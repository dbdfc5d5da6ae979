"""Token mergence: tokens that go are merged into the most similar of those that stay.

The operator of Bian et al., "Multi-Scale And Token Mergence: Make Your ViT More Efficient",
arXiv 2306.04897, on EViT's selection and DeiT's weights. There is no public code; where the paper
leaves it open, counts are rounded up and selection stands between attention and MLP as in EViT,
similarity is the cosine of the tokens at that point, and nothing merges into the class token. The
multi-scale features of the same paper are in `multiscale`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from svit_deploy.backbones.tokens import Decided
from svit_deploy.graph.maps import Dim
from svit_deploy.graph.rows import flat_rows, gather_rows, with_prefix
from svit_deploy.graph.survivors import Survivors
from svit_deploy.graph.tokens import attention_margin, merge_tokens, top_tokens, unit_rows
from svit_deploy.methods.evit import Evit, EvitGraph, EvitReference, stages
from svit_deploy.methods.method import Values
from svit_deploy.methods.ranking import blank, merge_parts
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.result import Selected
from svit_deploy.names import decision_name, lead_name, margin_name, target_name

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MergenceSettings:
    """What a training chooses.

    Attributes:
        keep_rate: the share of tokens that each selection keeps of those it finds.
        prune_blocks: the blocks that select, between their attention and their MLP.
    """

    keep_rate: float
    prune_blocks: tuple[int, ...] = (3, 6, 9)
    fuse: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class MergenceOnLvVitSettings(MergenceSettings):
    """What is not said here is as on DeiT.

    Attributes:
        prune_blocks: by default three that share out the blocks evenly: the paper's of LV-ViT-S.
        before_mlp: whether a block selects between its attention and its MLP, or behind both.
    """

    prune_blocks: tuple[int, ...] = ()
    before_mlp: bool = True


class MergenceGraph(EvitGraph):
    def prune(self, x: str, score: str, tokens: Dim, stage: int) -> tuple[str, Dim, Decided]:
        """The class token, then the best tokens, each with what is merged into it."""
        graph, width = self.graph, self.config.embed_dim
        assert isinstance(tokens, int)  # a classifier's graph has one size
        count, survivors = stages(self.config)[stage][1], self.survivors
        margin = graph.rename(attention_margin(graph, score), margin_name(stage))
        order = graph.rename(top_tokens(graph, margin, tokens - 1), decision_name(stage))
        margin = survivors.spread(margin)
        kept = graph.slice(order, 0, count)
        gone = graph.slice(order, count, tokens)
        places = with_prefix(graph, kept, 1)
        stay = gather_rows(graph, x, flat_rows(graph, places, tokens))
        stay = graph.reshape(stay, -1, count + 1, width)
        if count == tokens - 1:
            chosen = Decided(survivors.keep(places), margin, self.source(survivors, None, None))
            return graph.reshape(stay, -1, width), tokens, chosen
        moved = graph.op("Add", gone, graph.constant(1))
        moved = gather_rows(graph, x, flat_rows(graph, moved, tokens))
        moved = graph.reshape(moved, -1, tokens - 1 - count, width)
        first = graph.slice(stay, 0, 1)
        stay = graph.slice(stay, 1, count + 1)
        similar = graph.op(
            "MatMul",
            unit_rows(graph, graph.to_float32(moved)),
            graph.op("Transpose", unit_rows(graph, graph.to_float32(stay)), perm=(0, 2, 1)),
        )
        target = graph.ops("TopK", similar, graph.constant([1]), outputs=2)[1]
        target = graph.op("Squeeze", target, graph.constant([2]))
        target = graph.rename(target, target_name(stage))
        weight = graph.op("GatherElements", score, kept, axis=1)
        weight = graph.op("Unsqueeze", weight, graph.constant([2]))
        moved_weight = graph.op("GatherElements", score, gone, axis=1)
        merged, _ = merge_tokens(graph, stay, moved, weight, moved_weight, target, count)
        gone_names = graph.op(
            "GatherElements", survivors.places, graph.op("Add", gone, graph.constant(1)), axis=1
        )
        mask = survivors.keep(places)
        into = graph.op(
            "GatherElements", survivors.places, graph.op("Add", target, graph.constant(1)), axis=1
        )
        chosen = Decided(mask, margin, self.source(survivors, gone_names, into))
        rows = graph.op("Concat", first, merged, axis=1)
        return graph.reshape(rows, -1, width), count + 1, chosen

    def source(self, survivors: Survivors, gone: str | None, into: str | None) -> str:
        """The token that each is part of, `[B, S]`, after `gone` are merged `into` others."""
        graph, columns = self.graph, self.config.num_tokens
        renamed = survivors.everywhere([list(range(columns))])
        if gone is not None and into is not None:
            renamed = graph.op("ScatterElements", renamed, gone, into, axis=1)
        if survivors.parts is not None:
            renamed = graph.op("GatherElements", renamed, survivors.parts, axis=1)
        survivors.parts = renamed
        return renamed


class MergenceReference(EvitReference):
    def prune(self, x: Tensor, score: Tensor, stage: int) -> Tensor:
        import torch
        from torch.nn.functional import one_hot

        count = math.ceil(self.config.settings.keep_rate * score.shape[1])
        order = score.argsort(dim=1, descending=True, stable=True)
        self.values[margin_name(stage)] = score.log()
        order = self.decide(decision_name(stage), order)
        ranked = torch.take_along_dim(x[:, 1:], order[..., None], dim=1)
        share = torch.take_along_dim(score, order, dim=1)[..., None]
        stay, gone = ranked[:, :count], ranked[:, count:]
        if gone.shape[1]:
            similar = torch.cosine_similarity(gone[:, :, None], stay[:, None], dim=3)
            target = self.decide(target_name(stage), similar.argmax(dim=2))
            into = one_hot(target, count).float()  # [B, M, K]
            summed = stay * share[:, :count]
            summed = summed + into.transpose(1, 2) @ (gone * share[:, count:])
            total = share[:, :count] + into.transpose(1, 2) @ share[:, count:]
            stay = summed / total
            best = similar.topk(min(2, count), dim=2).values
            lead = best[..., 0] - best[..., -1] if count > 1 else best[..., 0] + torch.inf
            self.values[lead_name(stage)] = lead
        return torch.cat([x[:, :1], stay], dim=1)


class Mergence(Evit):
    title = "Token Mergence"
    settings: ClassVar[type | None] = MergenceSettings

    def settings_from_args(self, args: Mapping[str, Any]) -> dict[str, Any] | None:
        return None

    def values(self, config: ModelConfig) -> Values:
        values: Values = {}
        for gate, (entering, kept) in enumerate(stages(config)):
            values[margin_name(gate)] = (np.float32, (entering,))
            values[decision_name(gate)] = (np.int64, (entering,))
            if kept < entering:
                values[target_name(gate)] = (np.int64, (entering - kept,))
        return values

    def reference_values(self, config: ModelConfig) -> Values:
        return {
            lead_name(gate): (np.float32, (entering - kept,))
            for gate, (entering, kept) in enumerate(stages(config))
            if kept < entering
        }

    def decode_selection(
        self, config: ModelConfig, values: Mapping[str, np.ndarray], images: int
    ) -> Selected:
        keep, margin = blank(config, images, config.num_tokens)
        lead = np.full(keep.shape, np.inf, np.float32)
        source, image = np.zeros(keep.shape, np.int64), np.arange(images)[:, None]
        names = np.tile(np.arange(config.num_tokens), (images, 1))
        parts = names.copy()
        for gate, (entering, kept) in enumerate(stages(config)):
            margin[image, gate, names[:, 1:]] = values[margin_name(gate)]
            ranked = np.take_along_axis(names[:, 1:], values[decision_name(gate)], axis=1)
            stay, gone = ranked[:, :kept], ranked[:, kept:]
            if kept < entering:
                into = np.take_along_axis(stay, values[target_name(gate)], axis=1)
                parts = merge_parts(parts, gone, into)
                if lead_name(gate) in values:
                    lead[image, gate, gone] = values[lead_name(gate)]
            names = np.concatenate([names[:, :1], stay], axis=1)
            keep[image, gate, names] = True
            source[:, gate] = parts
        return Selected(keep, margin, source, lead)

    def graph(self, writer: Any, rows: str) -> MergenceGraph:
        return MergenceGraph(writer, rows)

    def reference(self, backbone: Any, x: Tensor) -> MergenceReference:
        return MergenceReference(backbone, x)


class MergenceOnLvVit(Mergence):
    settings = MergenceOnLvVitSettings
