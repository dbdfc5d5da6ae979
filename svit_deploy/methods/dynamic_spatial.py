"""DynamicViT on backbones in stages: tokens of the third stage go a slow or a fast way.

Rao et al., "Dynamic Spatial Sparsification for Efficient Vision Transformers and Convolutional
Neural Networks", TPAMI 2023 (arXiv 2207.01580); the numbers are those of raoyongming/DynamicViT @
1322e626, its Swin and ConvNeXt families.

Nothing is removed. Tokens are mixed as ever, the attention of a window or a convolution being of
the whole map; then the best of them take the block's own feed-forward, and the others one LayerNorm
and one linear layer in its place. A choice holds until the next predictor, which ranks all tokens
anew, so that one may come back.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from svit_deploy.backbones.tokens import Decided, GraphTokens, ReferenceTokens
from svit_deploy.errors import InputError
from svit_deploy.graph.rows import flat_rows, gather_rows
from svit_deploy.graph.survivors import Survivors
from svit_deploy.graph.tokens import top_tokens
from svit_deploy.methods.dynamicvit import (
    OFFICIAL,
    DynamicVit,
    DynamicVitSettings,
    predict,
    predict_in_torch,
    predictor_shapes,
)
from svit_deploy.methods.method import Values
from svit_deploy.methods.ranking import ranked_values
from svit_deploy.model.arch import Arch
from svit_deploy.model.assumption import typed
from svit_deploy.model.config import ModelConfig, check_ratios
from svit_deploy.model.keys import Shape, Tensors, linear, norm
from svit_deploy.model.result import Selected
from svit_deploy.names import INPUT, decision_name, margin_name

if TYPE_CHECKING:
    from torch import Tensor

STAGE = 2
"""The stage that has fast ways, counted from 0."""
FALL = 0.2
"""What each predictor keeps less than the one before, where one number is given."""


@dataclass(frozen=True)
class Layout:
    """The official names of the method's own weights on a backbone.

    Attributes:
        block: of a block of the third stage, its number left open.
        fast: the LayerNorm and the linear layer of its fast way, behind that.
        scale: the layer scale of its fast way, behind that; none if empty.
        predictors: in front of their numbers.
        convolved: whether the predictors' linear layers are convolutions of single places.
    """

    block: str
    fast: str
    predictors: str
    scale: str = ""
    convolved: bool = False


SWIN = Layout("layers.2.blocks.{}", "fastmlp.fc1", "layers.2.score_predictor")
CONVNEXT = Layout("stages.2.{}", "fast_path", "score_predictor", "fast_path_gamma", convolved=True)


@dataclass(frozen=True, kw_only=True)
class DynamicSpatialSettings(DynamicVitSettings):
    """What a training chooses.

    Attributes:
        base_rate: the share of the third stage's tokens that go the slow way behind each
            predictor; of one number, the number, less 0.2, and less 0.4.
        prune_blocks: the block, of all, in front of which each predictor stands; by default as
            far apart as the first is from the stage's begin.
    """


class DynamicSpatialGraph(GraphTokens):
    """The map stays in its order; rows are gathered for either way, and put back.

    Attributes:
        slow, fast: rows of the map that go either way; none where there is only one.
        back: of each row of the map, its place among the slow and then the fast ones.
    """

    slow = fast = back = ""

    def __init__(self, writer: Any, rows: str, kept: tuple[int, ...]) -> None:
        super().__init__(writer, rows)
        self.kept = kept

    def put_map(self, x: str) -> None:
        super().put_map(x)
        self.slow = self.fast = self.back = ""

    def block(self, block: int) -> str:
        graph, writer, name = self.graph, self.writer, self.writer.name_of(block)
        if (gate := self.config.gate_of.get(block)) is not None:
            self.choose(gate)
        if not self.slow:
            return super().block(block)
        x, mixed = writer.mix(self.rows, block)
        with graph.scope("slow"):
            slow = writer.feed(gather_rows(graph, mixed, self.slow), block)
        with graph.scope("fast"):
            fast = self.feed_fast(gather_rows(graph, mixed, self.fast), f"{name}.fast")
            both = graph.op("Concat", slow, fast, axis=0)
            return graph.op("Add", x, gather_rows(graph, both, self.back))

    def choose(self, gate: int) -> None:
        """Which tokens go the slow way, from here on."""
        graph, count, kept = self.graph, self.count, self.kept[gate]
        assert isinstance(count, int)
        with graph.scope("gate"):
            margin = predict(self, graph.to_float32(self.rows), count, gate)
            margin = graph.rename(margin, margin_name(gate))
            chosen = graph.rename(top_tokens(graph, margin, kept), decision_name(gate))
        with graph.scope("select"):
            keep = Survivors(graph, INPUT, count, count, 0).keep(chosen)
            self.decided.append(Decided(keep, margin))
            others = graph.op("Where", keep, *(graph.constant(v, np.float32) for v in (0, 1)))
            rest = top_tokens(graph, others, count - kept)
            self.slow, self.fast = (flat_rows(graph, part, count) for part in (chosen, rest))
            order = graph.op("Concat", self.slow, self.fast, axis=0)
            places = graph.range(graph.shape(order, 0))
            self.back = graph.op("ScatterElements", order, order, places)

    def feed_fast(self, x: str, name: str) -> str:
        graph, layers = self.graph, self.writer.layers
        normed = graph.to_precision(layers.layer_norm(x, f"{name}.norm", self.config.block_eps))
        if f"{name}.gamma" in layers.weights:
            return layers.scaled_linear(normed, f"{name}.linear", f"{name}.gamma")
        return layers.linear(normed, f"{name}.linear")


class DynamicSpatialReference(ReferenceTokens):
    """Both ways are computed for all tokens."""

    slow: Tensor | None = None

    def __init__(self, backbone: Any, rows: Tensor, shares: tuple[float, ...]) -> None:
        super().__init__(backbone, rows)
        self.shares = shares

    def put_map(self, x: Tensor) -> None:
        super().put_map(x)
        self.slow = None

    def step(self, block: int) -> None:
        import torch

        backbone, name = self.backbone, f"{self.backbone.name_of(block)}.fast"
        if (gate := self.config.gate_of.get(block)) is not None:
            score = predict_in_torch(backbone, self.rows, gate)
            count = int(score.shape[1] * self.shares[gate])
            order = score.argsort(dim=1, descending=True, stable=True)
            chosen = self.decide(decision_name(gate), order[:, :count])
            self.values[margin_name(gate)] = score
            self.slow = torch.zeros_like(score, dtype=torch.bool).scatter(1, chosen, True)
        if self.slow is None:
            super().step(block)
            return
        x, mixed = backbone.mix(self.rows, block)
        fast = backbone.norm(mixed, f"{name}.norm", backbone.block_eps)
        if f"{name}.gamma" in backbone.exact:
            fast = backbone.scaled_linear(fast, f"{name}.linear", f"{name}.gamma")
        else:
            fast = backbone.linear(fast, f"{name}.linear")
        self.rows = x + torch.where(self.slow[..., None], backbone.feed(mixed, block), fast)


class DynamicSpatial(DynamicVit):
    """Its weights have `predictors.{s}`, and `fast.{norm, linear}` in blocks of the stage."""

    settings = DynamicSpatialSettings
    removes = False
    gate_stage = STAGE

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout

    def matches(self, keys: Collection[str]) -> bool:
        return any(key.startswith(f"{self.layout.predictors}.") for key in keys)

    def official_name(self, name: str) -> str:
        layout = self.layout
        if found := re.fullmatch(r"predictors\.(\d+)\.(\w+)\.(\w+)", name):
            return f"{layout.predictors}.{found[1]}.{OFFICIAL[found[2]]}.{found[3]}"
        parts = {"norm": f"{layout.fast}.0", "linear": f"{layout.fast}.1", "gamma": layout.scale}
        return re.sub(r"fast\.(norm|linear|gamma)", lambda found: parts[found[1]], name)

    def infer(self, tensors: Tensors, dims: Any) -> Any:
        layout, blocks = self.layout, range(dims.depths[STAGE])
        first = f"{layout.block}.{layout.fast}.0.weight"
        return replace(
            dims,
            num_gates=tensors.count(re.escape(layout.predictors)),
            fast_from=next((b for b in blocks if first.format(b) in tensors.arrays), 0),
        )

    def dims_from_arch(self, dims: Any, arch: Arch) -> Any:
        dims, blocks = super().dims_from_arch(dims, arch), arch.settings.get("prune_blocks")
        first = blocks[0] - sum(dims.depths[:STAGE]) if blocks else max(1, dims.depths[STAGE] // 9)
        return replace(dims, fast_from=first)

    def shapes(self, shapes: dict[str, Shape], dims: Any) -> dict[str, Shape]:
        width = dims.embed_dim << STAGE
        for stage in range(dims.num_gates):
            for name, shape in predictor_shapes(stage, width).items():
                single = (1, 1) if self.layout.convolved and len(shape) == 2 else ()
                shapes[name] = (*shape, *single)
        for block in range(dims.fast_from, dims.depths[STAGE]):
            name = f"{self.layout.block.format(block)}.fast"
            shapes |= norm(f"{name}.norm", width) | linear(f"{name}.linear", width, width)
            if self.layout.scale:
                shapes[f"{name}.gamma"] = (width,)
        return shapes

    def settle(self, settings: Any, dims: Any) -> Any:
        before, first = sum(dims.depths[:STAGE]), dims.fast_from
        if not settings.prune_blocks:
            blocks = tuple(before + first * (gate + 1) for gate in range(dims.num_gates))
            settings = replace(settings, prune_blocks=blocks)
        elif settings.prune_blocks[0] != before + first:
            raise InputError(
                f"prune_blocks begins with {settings.prune_blocks[0]}, and the weights have fast "
                f"ways from block {before + first} on",
                f"give {before + first} and the blocks of the other predictors, counted from 0",
            )
        return settings

    def check(self, config: ModelConfig) -> None:
        rates, blocks = config.settings.base_rate, config.settings.prune_blocks
        before = sum(config.settings.depths[:STAGE])
        last = before + config.settings.depths[STAGE] - 1
        check_ratios(rates, "base_rate")
        if len(rates) not in (1, len(blocks)):
            raise InputError(
                f"base_rate has {len(rates)} values for {len(blocks)} predictors",
                f"give a share for each, {len(blocks)} values, or one number that falls by {FALL}",
            )
        if any(not before <= block <= last for block in blocks):
            raise InputError(
                f"prune_blocks {list(blocks)} are not all in the third stage",
                f"give blocks from {before} to {last}",
            )
        tokens = config.num_patches
        if config.gate_blocks and not all(0 < count < tokens for count in self.kept(config)):
            raise InputError(
                f"of {tokens} tokens, base_rate {typed(rates)} sends {list(self.kept(config))} the "
                "slow way",
                "give shares that leave some for either way",
            )

    def shares(self, config: ModelConfig) -> tuple[float, ...]:
        """Of the stage's tokens, those that go the slow way behind each predictor."""
        # The published code's own float arithmetic: 0.7 - 0.2 is less than 0.5.
        rates: tuple[float, ...] = config.settings.base_rate
        if len(rates) == 1:
            rates = tuple(rates[0] - FALL * gate for gate in range(config.num_gates))
        return rates[: config.num_gates]

    def kept(self, config: ModelConfig) -> tuple[int, ...]:
        return tuple(int(config.num_patches * share) for share in self.shares(config))

    def values(self, config: ModelConfig) -> Values:
        kept = self.kept(config)
        return ranked_values([config.num_patches] * len(kept), kept)

    def decode_selection(
        self, config: ModelConfig, values: Mapping[str, np.ndarray], images: int
    ) -> Selected:
        gates = range(config.num_gates)
        if not gates:
            return Selected.nothing(images, config.num_tokens)
        margin = np.stack([values[margin_name(gate)] for gate in gates], 1)
        keep = np.zeros(margin.shape, bool)
        for gate in gates:
            np.put_along_axis(keep[:, gate], values[decision_name(gate)], True, axis=1)
        return Selected(keep, margin)

    def graph(self, writer: Any, rows: str) -> DynamicSpatialGraph:
        return DynamicSpatialGraph(writer, rows, self.kept(writer.config))

    def reference(self, backbone: Any, x: Tensor) -> DynamicSpatialReference:
        return DynamicSpatialReference(backbone, x, self.shares(backbone.config))
