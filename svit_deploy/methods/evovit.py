"""Evo-ViT: informative tokens are computed, placeholders wait, and each stage chooses anew.

Xu et al., "Evo-ViT: Slow-Fast Token Evolution for Dynamic Vision Transformer", AAAI 2022; the
numbers are those of YifanXu74/Evo-ViT @ 4c5d9b30, its DeiT family as it is evaluated: selection
stage by stage, placeholders left as they are. Inside ViT-Adapter, where every late block is a stage
of its own, those of uzh-rpg/svit @ d2472c13.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from svit_deploy.backbones.tokens import Decided, GraphTokens, ReferenceTokens
from svit_deploy.errors import InputError
from svit_deploy.graph.maps import total
from svit_deploy.graph.rows import flat_rows, gather_rows, scatter_rows, with_prefix
from svit_deploy.graph.survivors import Survivors
from svit_deploy.graph.tokens import attention_margin, share_of, top_tokens
from svit_deploy.methods.method import Method, Values
from svit_deploy.methods.ranking import blank, ranked_values
from svit_deploy.model.config import ModelConfig, TokenMode, check_ratios
from svit_deploy.model.keys import Shape, linear
from svit_deploy.model.result import Selected
from svit_deploy.names import INPUT, decision_name, margin_name

if TYPE_CHECKING:
    from torch import Tensor

OFFICIAL = {
    "norm1": "norms.{}",
    "attn.qk": "qks.{}.qk",
    "attn.v": "vs.{}.v",
    "attn.proj": "projs.{}",
}


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class EvoVitPerBlockSettings(EvoVitSettings):
    """No model is published; the defaults are those of the code's registered variants.

    Attributes:
        early_tradeoff: `tradeoff` before the first stage.
    """

    prune_ratio: tuple[float, ...] = (0.5,) * 8
    prune_blocks: tuple[int, ...] = tuple(range(4, 12))
    early_tradeoff: float = 1.0


Ends = Callable[[ModelConfig, int], bool]


class EvoVitGraph(GraphTokens):
    """The ranking `[B, N]` and the map `[B * S, C]` stay in the image's order throughout.

    Args:
        ends: whether a stage ends with a block.
    """

    whole = ranking = places = chosen = score = ""

    def __init__(self, writer: Any, rows: str, ends: Ends) -> None:
        super().__init__(writer, rows)
        self.ends, self.inside = ends, False

    def block(self, block: int) -> str:
        graph, layers, config = self.graph, self.writer.layers, self.config
        if (stage := config.gate_of.get(block)) is not None:
            with graph.scope("select"):
                self.begin(stage)
        rows, attended = self.writer.attend_scoring(self.rows, block, self.count, "ReduceSum")
        rows = layers.feed_forward(rows, f"blocks.{block}", config.block_eps)
        self.score = self.update(attended)
        if not self.inside or not self.ends(config, block):
            return rows
        rows = scatter_rows(graph, self.whole, self.places, rows)  # all tokens again
        self.score = graph.op("ScatterElements", self.ranking, self.chosen, self.score, axis=1)
        self.count, self.inside = self.writer.num_tokens, False
        return rows

    def begin(self, stage: int) -> None:
        """A stage: the best patches and the class token are computed from here on."""
        graph, tokens = self.graph, self.writer.num_tokens
        share = self.config.settings.prune_ratio[stage]
        kept, most = share_of(graph, share, tokens, 1), ceil(share * self.writer.most_tokens)
        margin = graph.rename(attention_margin(graph, self.score), margin_name(stage))
        chosen = graph.rename(top_tokens(graph, margin, kept, most), decision_name(stage))
        self.decided.append(self.decide(margin, chosen))
        places = with_prefix(graph, chosen, 1)
        self.inside, self.ranking, self.chosen = True, self.score, chosen
        self.whole, self.places = self.rows, flat_rows(graph, places, tokens)
        self.rows = gather_rows(graph, self.whole, self.places)
        self.score = graph.op("GatherElements", self.score, chosen, axis=1)
        self.count = total(graph, kept, 1)

    def update(self, attended: str) -> str:
        """The ranking after a block, `[B, K]` of the tokens that it computed."""
        graph, settings = self.graph, self.config.settings
        share = settings.tradeoff
        if not self.decided:
            share = getattr(settings, "early_tradeoff", 1.0)
            if not self.score or share == 1:
                return attended
        old = graph.op("Mul", self.score, graph.constant(1 - share, np.float32))
        return graph.op("Add", old, graph.op("Mul", attended, graph.constant(share, np.float32)))

    def decide(self, margin: str, kept: str) -> Decided:
        """All tokens are still there: only those after the prefix are ranked."""
        tokens = self.writer.num_tokens
        survivors = Survivors(self.graph, INPUT, tokens, tokens, 1)
        margin = survivors.spread(margin)
        return Decided(survivors.keep(with_prefix(self.graph, kept, 1)), margin)


class EvoVitReference(ReferenceTokens):
    def __init__(self, backbone: Any, rows: Tensor, ends: Ends) -> None:
        import torch

        super().__init__(backbone, rows)
        self.ends, self.score = ends, torch.zeros(len(rows), rows.shape[1] - 1)
        self.kept: Tensor | None = None
        self.computed = rows
        self.chosen: Tensor | None = None

    @property
    def visible(self) -> Tensor:
        return self.computed

    def accept(self, visible: Tensor) -> None:
        self.rows = visible if self.chosen is None else self.put(self.chosen, visible)
        self.computed = visible

    def put(self, places: Tensor, part: Tensor) -> Tensor:
        """All tokens, those of some places exchanged."""
        return self.rows.scatter(1, places[..., None].expand_as(part), part)

    def step(self, block: int) -> None:
        import torch

        config, backbone, settings = self.config, self.backbone, self.config.settings
        if (stage := config.gate_of.get(block)) is not None:
            count = int(self.score.shape[1] * settings.prune_ratio[stage])
            kept = self.score.argsort(dim=1, descending=True, stable=True)[:, :count]
            self.values[margin_name(stage)] = self.score.log()
            self.kept = self.decide(decision_name(stage), kept)
        share = settings.tradeoff
        if self.kept is None:
            x, weights, _ = backbone.attention(self.rows, block)
            self.rows = self.computed = backbone.feed_forward(x, block)
            if not self.values:
                share = getattr(settings, "early_tradeoff", 1.0) if block else 1.0
            self.score = (1 - share) * self.score + share * weights[:, :, 0, 1:].sum(dim=1)
            return
        chosen = torch.cat([torch.zeros(len(self.rows), 1).long(), self.kept + 1], dim=1)
        part = torch.take_along_dim(self.rows, chosen[..., None], dim=1)
        part, weights, _ = backbone.attention(part, block)
        part = backbone.feed_forward(part, block)
        own = torch.take_along_dim(self.score, self.kept, dim=1)
        own = (1 - share) * own + share * weights[:, :, 0, 1:].sum(dim=1)
        self.score = self.score.scatter(1, self.kept, own)
        self.rows, self.computed, self.chosen = self.put(chosen, part), part, chosen
        if self.ends(config, block):
            self.kept, self.computed, self.chosen = None, self.rows, None


class EvoVit(Method):
    """Its attention keeps `attn.qk` and `attn.v` apart; `norm_cls`, `head_cls` are for training."""

    title = "Evo-ViT"
    modes = (TokenMode.STATIC, TokenMode.DENSE)
    blocks_setting = "prune_blocks"
    settings: ClassVar[type | None] = EvoVitSettings
    ranks_inside = True
    margin_unit = 1.0  # of the attention's logarithm

    def matches(self, keys: Collection[str]) -> bool:
        return any(key.startswith("qks.") for key in keys)

    def is_unused(self, key: str) -> bool:
        return key.startswith(("norm_cls.", "head_cls."))

    def official_name(self, name: str) -> str:
        found = re.fullmatch(r"blocks\.(\d+)\.(norm1|attn\.qk|attn\.v|attn\.proj)\.(\w+)", name)
        return f"{OFFICIAL[found[2]].format(found[1])}.{found[3]}" if found else name

    def shapes(self, shapes: dict[str, Shape], dims: Any) -> dict[str, Shape]:
        width = dims.embed_dim
        for block in range(dims.depth):
            name = f"blocks.{block}.attn"
            del shapes[f"{name}.qkv.weight"], shapes[f"{name}.qkv.bias"]
            shapes |= linear(f"{name}.qk", 2 * width, width) | linear(f"{name}.v", width, width)
        return shapes

    def check(self, config: ModelConfig) -> None:
        settings = config.settings
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

    def decode_selection(
        self, config: ModelConfig, values: Mapping[str, np.ndarray], images: int
    ) -> Selected:
        keep, margin = blank(config, images, config.num_tokens)
        for gate in range(config.num_gates):
            margin[:, gate, 1:] = values[margin_name(gate)]
            np.put_along_axis(keep[:, gate, 1:], values[decision_name(gate)], True, axis=1)
        return Selected(keep, margin)

    def stage_ends(self, config: ModelConfig, block: int) -> bool:
        """Whether all tokens are together again after a block inside a stage."""
        return block + 1 in (*config.gate_blocks, config.depth)

    def graph(self, writer: Any, rows: str) -> EvoVitGraph:
        return EvoVitGraph(writer, rows, self.stage_ends)

    def reference(self, backbone: Any, x: Tensor) -> EvoVitReference:
        return EvoVitReference(backbone, x, self.stage_ends)


class EvoVitPerBlock(EvoVit):
    """Each stage is one block: it selects anew, and the next sees all tokens again."""

    settings = EvoVitPerBlockSettings

    def stage_ends(self, config: ModelConfig, block: int) -> bool:
        return True
