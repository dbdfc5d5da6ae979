"""EViT: the class token's attention ranks the tokens; those that go may be fused into one.

Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token
Reorganizations", ICLR 2022; the numbers are those of youweiliang/evit @ 5ca95a7c. Of it on LV-ViT-S
no code or weights are published: `EvitOnLvVitSettings` name what is open.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from svit_deploy.backbones.tokens import Decided
from svit_deploy.errors import UsageError
from svit_deploy.graph.builder import FLOAT, INT64_MAX
from svit_deploy.graph.maps import Dim, total
from svit_deploy.graph.rows import flat_rows, gather_rows, with_prefix
from svit_deploy.graph.tokens import attention_margin, share_of, top_tokens
from svit_deploy.methods.method import Method, Values, shared_out
from svit_deploy.methods.ranking import decode_survivors, ranked_values
from svit_deploy.methods.removal import (
    RankedGraph,
    RemovalSettings,
    RemovingReference,
    check_removal,
)
from svit_deploy.model.config import ModelConfig, TokenMode, check_ratios
from svit_deploy.model.result import Selected
from svit_deploy.names import decision_name, margin_name

if TYPE_CHECKING:
    from torch import Tensor


STAGES = 3


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class EvitInAdapterSettings(RemovalSettings, EvitSettings):
    """In a ViT-Adapter, whose map has no place for a fused token."""


@dataclass(frozen=True, kw_only=True)
class EvitOnLvVitSettings(EvitSettings):
    """No model is published; what is not said here is as on DeiT.

    Attributes:
        prune_blocks: by default three that share out the blocks evenly: of LV-ViT-S those of arXiv
            2306.04897.
        before_mlp: whether a block selects between its attention and its MLP, or behind both.
        fused_in_max: whether the last fused token is one of those whose best the second head takes.
    """

    prune_blocks: tuple[int, ...] = ()
    before_mlp: bool = True
    fused_in_max: bool = True


class EvitGraph(RankedGraph):
    """Tokens leave inside a block: between its attention and its MLP, unless settings say else."""

    def block(self, block: int) -> str:
        if (stage := self.config.gate_of.get(block)) is None:
            return super().block(block)
        layers, name, eps = self.writer.layers, f"blocks.{block}", self.config.block_eps
        before_mlp = getattr(self.config.settings, "before_mlp", True)
        x, score = self.writer.attend_scoring(self.rows, block, self.count, "ReduceMean")
        if not before_mlp:
            x = layers.feed_forward(x, name, eps)
        with self.graph.scope("select"):
            x, self.count, chosen = self.prune(x, score, self.count, stage)
        self.decided.append(chosen)
        return layers.feed_forward(x, name, eps) if before_mlp else x

    def for_head(self) -> tuple[str, int | str]:
        rows, count = super().for_head()
        if not leaves_out_fused(self.config):
            return rows, count
        graph, width = self.graph, self.config.embed_dim
        split = graph.slice(graph.reshape(rows, -1, count, width), 0, -1)
        return graph.reshape(split, -1, width), total(graph, count, -1)

    def prune(self, x: str, score: str, tokens: Dim, stage: int) -> tuple[str, Dim, Decided]:
        """The class token, the best tokens in their order, and the sum of the others if fused."""
        config, graph, width = self.config, self.graph, self.config.embed_dim
        survivors, smallest = self.survivors, config.at(self.writer.sizes.min)
        count = share_of(graph, config.settings.keep_rate, tokens, 1, up=True)
        most = stages(config.at(self.writer.sizes.max))[stage][1]
        margin = graph.rename(attention_margin(graph, score), margin_name(stage))
        kept = graph.rename(top_tokens(graph, margin, count, most), decision_name(stage))
        places = with_prefix(graph, kept, 1)
        margin = survivors.spread(margin)
        self.leave(x)
        chosen = Decided(survivors.keep(places), margin)
        rows = gather_rows(graph, x, flat_rows(graph, places, tokens))
        if not fuses(config, stages(config)[stage][0]):
            return rows, total(graph, count, 1), chosen
        if not fuses(config, stages(smallest)[stage][0]):
            height, width = self.writer.sizes.min
            raise UsageError(
                f"of an image of {height}x{width}, selection {stage} leaves nothing to fuse, and "
                "of larger ones it does",
                "export for larger images, or for one size",
            )
        zeros = graph.op("Mul", graph.op("Cast", kept, to=FLOAT), graph.constant(0, np.float32))
        weights = graph.op("ScatterElements", score, kept, zeros, axis=1)
        weights = graph.op("Unsqueeze", graph.to_precision(weights), graph.constant([1]))
        split = graph.reshape(x, -1, tokens, width)
        patches = graph.slice(split, 1, tokens if isinstance(tokens, int) else INT64_MAX)
        fused = graph.op("MatMul", weights, patches)  # [B, 1, C]
        remaining = total(graph, count, 1)
        split = graph.op("Concat", graph.reshape(rows, -1, remaining, width), fused, axis=1)
        survivors.add(total(graph, self.writer.num_tokens, stage))
        return graph.reshape(split, -1, width), total(graph, remaining, 1), chosen


class EvitReference(RemovingReference):
    def step(self, block: int) -> None:
        before_mlp = getattr(self.config.settings, "before_mlp", True)
        x, weights, _ = self.backbone.attention(self.rows, block)
        if not before_mlp:
            x = self.backbone.feed_forward(x, block)
        if (stage := self.config.gate_of.get(block)) is not None:
            x = self.prune(x, weights[:, :, 0, 1:].mean(dim=1), stage)
        self.rows = self.backbone.feed_forward(x, block) if before_mlp else x

    def for_head(self) -> Tensor:
        return self.rows[:, :-1] if leaves_out_fused(self.config) else self.rows

    def prune(self, x: Tensor, score: Tensor, stage: int) -> Tensor:
        """What remains of tokens `[B, T, C]`, ranked by the class token's attention."""
        import torch

        settings = self.config.settings
        count = math.ceil(settings.keep_rate * score.shape[1])
        order = score.argsort(dim=1, descending=True, stable=True)
        kept = self.decide(decision_name(stage), order[:, :count])
        rest = torch.ones_like(score, dtype=torch.bool).scatter(1, kept, False)
        gone = rest.nonzero()[:, 1].view(len(score), score.shape[1] - count)
        first = torch.zeros(len(kept), 1, dtype=torch.long)
        left = self.keep(x, torch.cat([first, kept + 1], dim=1))
        self.values[margin_name(stage)] = score.log()
        if not settings.fuse or count == score.shape[1]:
            return left
        share = torch.take_along_dim(score, gone, dim=1)[..., None]
        others = torch.take_along_dim(x[:, 1:], gone[..., None], dim=1)
        self.places = torch.cat([self.places, first + self.tokens + stage], dim=1)
        return torch.cat([left, (others * share).sum(dim=1, keepdim=True)], dim=1)


class Evit(Method):
    """On DeiT's weights. Column S + g of a keep mask is the token that selection g fused."""

    title = "EViT"
    modes = (TokenMode.STATIC, TokenMode.DENSE)
    blocks_setting = "prune_blocks"
    settings: ClassVar[type | None] = EvitSettings
    ranks_inside = True
    removes = True
    margin_unit = 1.0  # of the attention's logarithm

    def settings_from_args(self, args: Mapping[str, Any]) -> dict[str, Any] | None:
        if "base_keep_rate" not in args:
            return None
        found = {"keep_rate": args["base_keep_rate"]}
        if "fuse_token" in args:
            found["fuse"] = args["fuse_token"]
        if numbers := re.findall(r"\d+", str(args.get("drop_loc", ""))):
            found["prune_blocks"] = tuple(map(int, numbers))
        return found

    def settle(self, settings: Any, dims: Any) -> Any:
        if settings.prune_blocks:
            return settings
        return replace(settings, prune_blocks=shared_out(dims.depth, STAGES))

    def check(self, config: ModelConfig) -> None:
        check_ratios((config.settings.keep_rate,), "keep_rate")
        self.refuse_distillation_token(config)

    def mask_width(self, config: ModelConfig) -> int:
        return config.num_tokens + (config.num_gates if config.settings.fuse else 0)

    def kept(self, config: ModelConfig) -> tuple[int, ...]:
        return tuple(count + 1 for _, count in stages(config))

    def values(self, config: ModelConfig) -> Values:
        found = stages(config)
        return ranked_values([entering for entering, _ in found], [kept for _, kept in found])

    def decode_selection(
        self, config: ModelConfig, values: Mapping[str, np.ndarray], images: int
    ) -> Selected:
        added = {
            stage: config.num_tokens + stage
            for stage, (entering, _) in enumerate(stages(config))
            if fuses(config, entering)
        }
        return decode_survivors(config, values, images, self.mask_width(config), added)

    def graph(self, writer: Any, rows: str) -> EvitGraph:
        return EvitGraph(writer, rows)

    def reference(self, backbone: Any, x: Tensor) -> EvitReference:
        config = backbone.config
        return EvitReference(backbone, x, self.mask_width(config) - config.num_tokens)


class EvitInAdapter(Evit):
    settings = EvitInAdapterSettings

    def check(self, config: ModelConfig) -> None:
        super().check(config)
        check_removal(config.settings)


class EvitOnLvVit(Evit):
    settings = EvitOnLvVitSettings


def stages(config: ModelConfig) -> list[tuple[int, int]]:
    """Tokens ranked and kept at each selection; a fused token is ranked by those after it."""
    found, entering = [], config.num_patches
    for _ in range(config.num_gates):
        kept = math.ceil(config.settings.keep_rate * entering)
        found.append((entering, kept))
        entering = kept + fuses(config, entering)
    return found


def leaves_out_fused(config: ModelConfig) -> bool:
    """Whether the last token is a fused one that the head is not to see."""
    if getattr(config.settings, "fused_in_max", True) or not config.gate_blocks:
        return False
    return fuses(config, stages(config)[-1][0])


def fuses(config: ModelConfig, entering: int) -> bool:
    """Whether a selection among `entering` tokens leaves any to fuse."""
    return config.settings.fuse and math.ceil(config.settings.keep_rate * entering) < entering
