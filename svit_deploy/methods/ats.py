"""ATS: each image keeps the tokens that samples of its class attention fall on.

Fayyaz et al., "Adaptive Token Sampling for Efficient Vision Transformers", ECCV 2022; the numbers
are those of adaptivetokensampling/ATS @ 9271257a for one image at a time. (Its results for a
batch depend on the batch, as padding takes part in the sampling.)

The tokens of an image are sorted by significance, least first. Their cumulative significance is
stretched to [0, 1], and samples at even distances, from its first value above 0 up to 1, each
pick the token nearest to them. A token is kept if a sample lies between the two points half-way
to its neighbours: its margin is how far the nearest sample is inside, or outside if negative,
but no more than the difference in significance to a neighbour, whose place it could take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from svit_deploy.config import ModelConfig, TokenMode
from svit_deploy.errors import InputError
from svit_deploy.export.builder import FLOAT, INT64_MAX, GraphBuilder
from svit_deploy.export.layers import attention
from svit_deploy.export.names import block_name, decision_name, margin_name, threshold_name
from svit_deploy.export.rows import gather_rows, true_positions
from svit_deploy.export.tokens import Decided, Packed, attend_to_all, key_bias, pack
from svit_deploy.export.vit import VitGraph
from svit_deploy.methods.keys import Dims
from svit_deploy.methods.method import Gates, Method

if TYPE_CHECKING:
    from torch import Tensor

    from svit_deploy.models.presets import Arch
    from svit_deploy.models.reference import Reference, Steps

FAR = 2.0
"""Beyond any sample, all of which lie in [0, 1]."""
TINY = 1e-30


@dataclass(frozen=True)
class AtsSettings:
    """What is chosen for a DeiT.

    Attributes:
        ats_blocks: the blocks that sample; by default as published.
    """

    ats_blocks: tuple[int, ...] = (3, 4, 5, 6, 7, 8, 9, 10, 11)


class AtsGraph(VitGraph):
    """Rows are those of the tokens still there (`dynamic`), or of all tokens (`masked`)."""

    def run(self, x: str) -> tuple[str, Sequence[Decided]]:
        config, graph = self.config, self.graph
        gate_of = config.gate_of
        decided: list[Decided] = []
        alive: str | None = None
        packed: Packed | None = None
        for block in range(config.depth):
            with graph.scope(f"block_{block}"):
                if block in gate_of:
                    x, alive, packed = self.sample(x, block, gate_of[block], alive, packed)
                    decided.append(Decided(alive, margin_name(gate_of[block])))
                elif packed is not None:
                    x = self.block(x, block, packed.attend)
                else:
                    bias = None if alive is None else key_bias(graph, alive)
                    x = self.block(x, block, attend_to_all(graph, self.grid, bias))
            x = graph.rename(x, block_name(block))
        if packed is None:
            return self.classify(x), decided
        return self.classify(gather_rows(graph, x, first_rows(graph, packed)), 1), decided

    def sample(
        self, x: str, block: int, gate: int, alive: str | None, packed: Packed | None
    ) -> tuple[str, str, Packed | None]:
        """A sampling block; all tokens there are its keys, the tokens that stay its queries."""
        graph, layers, grid, name = self.graph, self.layers, self.grid, f"blocks.{block}"
        if alive is None:
            shape = graph.op("Concat", self.batch(x), graph.constant([grid.num_tokens]), axis=0)
            alive = graph.op("Expand", graph.constant([[True]], bool), shape)
            if self.mode is TokenMode.DYNAMIC:
                packed = pack(graph, grid, alive)
        with graph.scope("attention"):
            eps = self.config.block_eps
            normed = graph.narrow(layers.layer_norm(x, f"{name}.norm1", eps))
            key = layers.part(normed, f"{name}.attn", "k")
            value = layers.part(normed, f"{name}.attn", "v")
            with graph.scope("gate"):
                if packed is None:
                    split = graph.reshape(normed, -1, grid.num_tokens, self.config.embed_dim)
                    first = graph.op("Gather", split, graph.constant(0), axis=1)
                else:
                    first = gather_rows(graph, normed, first_rows(graph, packed))
                first = layers.part(first, f"{name}.attn", "q")
                scores = self.significance(first, key, value, alive, packed)
                margin = graph.rename(sampling_margin(graph, scores, alive), margin_name(gate))
                threshold = np.array(self.config.thresholds[gate], np.float32)
                kept = graph.op("Greater", margin, graph.weight(threshold_name(gate), threshold))
                kept = graph.rename(kept, decision_name(gate))
                kept = graph.op("And", kept, alive)
            if packed is None:
                query = layers.part(normed, f"{name}.attn", "q")
                mixed = attention(
                    graph,
                    (query, key, value),
                    grid.num_tokens,
                    grid.num_heads,
                    grid.head_dim,
                    key_bias(graph, alive),
                )
                survivors = None
            else:
                survivors = pack(graph, grid, kept)
                there = graph.op("Gather", graph.reshape(kept, -1), packed.rows)
                rows = true_positions(graph, there)
                query = layers.part(gather_rows(graph, normed, rows), f"{name}.attn", "q")
                mixed = survivors.attend((query, key, value), keys=packed)
                x = gather_rows(graph, x, rows)
            x = graph.op("Add", x, layers.linear(mixed, f"{name}.attn.proj"))
        x = layers.feed_forward(x, name, eps)
        if survivors is None:  # nothing is left of the others
            x = graph.op("Where", graph.reshape(kept, -1, 1), x, graph.number(0))
        return x, kept, survivors

    def batch(self, x: str) -> str:
        """The batch size, of rows `[B * S, C]`."""
        return self.graph.op(
            "Div", self.graph.shape(x, 0), self.graph.constant([self.grid.num_tokens])
        )

    def significance(
        self, first: str, key: str, value: str, alive: str, packed: Packed | None
    ) -> str:
        """The class token's attention times the length of the values, `[B, S]` float32.

        Args:
            first: the class tokens' queries `[B, C]`.
            key, value: rows of all tokens that are there.
        """
        graph, grid = self.graph, self.grid
        query = graph.widen(graph.reshape(first, -1, grid.num_heads, 1, grid.head_dim))
        query = graph.op("Mul", query, graph.constant(grid.head_dim**-0.5, np.float32))
        length = graph.op("ReduceL2", graph.widen(value), graph.constant([1]), keepdims=0)
        bias: str | None
        if packed is None:
            split = graph.reshape(key, -1, grid.num_tokens, grid.num_heads, grid.head_dim)
            keys, bias = graph.op("Transpose", split, perm=(0, 2, 3, 1)), key_bias(graph, alive)
        else:
            keys = graph.op("Transpose", packed.split_heads(key), perm=(0, 1, 3, 2))
            bias = packed.bias
        scores = graph.op("MatMul", query, graph.widen(keys))  # [B, H, 1, K]
        if bias is not None:
            scores = graph.op("Add", scores, graph.widen(bias))
        weights = graph.op("Softmax", scores, axis=-1)
        total = graph.op("ReduceSum", weights, graph.constant([1, 2]), keepdims=0)  # [B, K]
        if packed is None:
            return graph.op("Mul", total, graph.reshape(length, -1, grid.num_tokens))
        total = graph.op("Gather", graph.reshape(total, -1), packed.places)
        flat = graph.op("Cast", graph.reshape(alive, -1), to=FLOAT)
        rows = graph.op("Unsqueeze", packed.rows, graph.constant([1]))
        flat = graph.op("ScatterND", flat, rows, graph.op("Mul", total, length))
        return graph.reshape(flat, -1, grid.num_tokens)


def first_rows(graph: GraphBuilder, packed: Packed) -> str:
    """The rows of the class tokens `[B]`: each is the first of its image."""
    bounds = map(graph.constant, ([0], [-1], [0]))
    return graph.op("Slice", packed.lengths, *bounds)


def sampling_margin(graph: GraphBuilder, scores: str, alive: str) -> str:
    """Margins `[B, S]` of significances `[B, S]`: +inf for the class token, -inf where not alive.

    Samples are evenly spaced, so the two nearest to the middle of a token's reach are found by
    arithmetic, without comparing all samples with all tokens.
    """
    op = graph.op

    def number(value: ArrayLike) -> str:
        return graph.constant(value, np.float32)

    def tail(value: str) -> str:
        return op("Slice", value, *map(graph.constant, ([1], [INT64_MAX], [1])))

    alive, scores = tail(alive), tail(scores)  # [B, N]
    scores = op("Where", alive, scores, number(0))
    total = op("ReduceSum", scores, graph.constant([1]), keepdims=1)
    scores = op("Div", scores, op("Max", total, number(TINY)))
    tokens = graph.shape(scores, 1)
    keyed = op("Where", alive, scores, number(np.inf))
    ranked, order = graph.ops("TopK", keyed, tokens, outputs=2, axis=1, largest=0)
    there = op("Less", ranked, number(np.inf))
    ranked = op("Where", there, ranked, number(0))
    cdf = op("CumSum", ranked, graph.constant(1))
    least = op("ReduceMin", cdf, graph.constant([1]), keepdims=1)
    span = op("Sub", op("ReduceMax", cdf, graph.constant([1]), keepdims=1), least)
    cdf = op("Div", op("Sub", cdf, least), op("Max", span, number(TINY)))
    above = op("Where", op("Greater", cdf, number(0)), cdf, number(1))
    start = op("ReduceMin", above, graph.constant([1]), keepdims=1)  # [B, 1], the first sample
    last = op("Cast", op("Sub", tokens, graph.constant([1])), to=FLOAT)  # its number
    step = op(
        "Max", op("Div", op("Sub", number(1), start), op("Max", last, number(1))), number(TINY)
    )

    def beside(values: str, before: float, after: float) -> tuple[str, str]:
        """Of each two neighbours a value `[B, N - 1]` -> those left and right of each token."""
        column = op("Slice", cdf, *map(graph.constant, ([0], [1], [1])))
        ends = [op("Expand", number([[end]]), op("Shape", column)) for end in (before, after)]
        return (
            op("Concat", ends[0], values, axis=1),
            op("Concat", values, ends[1], axis=1),
        )

    def neighbours(value: str) -> tuple[str, str]:
        first = op("Slice", value, *map(graph.constant, ([0], [-1], [1])))
        return first, tail(value)

    low, high = neighbours(cdf)
    _, high_there = neighbours(there)
    half = op("Mul", op("Add", low, high), number(0.5))
    left, right = beside(op("Where", high_there, half, number(FAR)), -FAR, FAR)
    middle = op("Mul", op("Add", left, right), number(0.5))
    index = op("Floor", op("Div", op("Sub", middle, start), step))

    def inside(offset: float) -> str:
        """How far a sample is inside the reach of each token."""
        chosen = op("Max", op("Min", op("Add", index, number(offset)), last), number(0))
        sample = op("Add", start, op("Mul", chosen, step))
        return op("Min", op("Sub", sample, left), op("Sub", right, sample))

    margin = op("Max", inside(0), inside(1))
    lower, higher = neighbours(ranked)
    gap = op("Where", high_there, op("Sub", higher, lower), number(np.inf))
    gap = op("Min", *beside(gap, np.inf, np.inf))
    margin = op("Max", op("Min", margin, gap), op("Neg", gap))
    # An image's last token has nothing to be ranked against.
    alone = op(
        "LessOrEqual", op("ReduceSum", op("Cast", alive, to=FLOAT), graph.constant([1])), number(1)
    )
    margin = op("Where", alone, number(FAR), margin)
    margin = op("Where", there, margin, number(-np.inf))
    margin = op("ScatterElements", margin, order, margin, axis=1)
    first = op("Slice", margin, *map(graph.constant, ([0], [1], [1])))
    infinity = op("Expand", number([[np.inf]]), op("Shape", first))
    return op("Concat", infinity, margin, axis=1)


class Ats(Method):
    """On DeiT's weights, without parameters of its own."""

    name, title, keys_of = "ats", "ATS", "deit"
    modes = (TokenMode.DYNAMIC, TokenMode.MASKED, TokenMode.DENSE)
    settings = AtsSettings
    graph = AtsGraph
    rule = "keep iff margin > threshold, margin = how far a sample is inside the token's reach"
    removes = True
    ranks_inside = True
    margin_unit = 0.05  # of cumulative significance, which ends at 1

    def told(self, args: Mapping[str, Any]) -> dict[str, Any] | None:
        blocks = args.get("VIT.ATS_BLOCKS")
        return {"ats_blocks": tuple(map(int, blocks))} if isinstance(blocks, list) else None

    def gates(self, arch: Arch, dims: Dims, settings: AtsSettings) -> Gates:
        return Gates(settings.ats_blocks, (False,) * len(settings.ats_blocks))

    def places(self, config: ModelConfig) -> tuple[int, ...]:
        return config.settings.ats_blocks

    def check(self, config: ModelConfig) -> None:
        if config.distilled and config.gate_blocks:
            raise InputError(
                "ATS could drop the distillation token, which the head reads",
                "give a checkpoint without one, or use --tokens dense",
            )

    def forward(self, reference: Reference, images: Tensor) -> Steps:
        import torch

        from svit_deploy.models.reference import Passed

        config = reference.config
        gate_of = config.gate_of
        x = reference.embed(images)
        maps = [x]
        values: dict[str, Tensor] = {}
        alive = torch.ones(x.shape[:2], dtype=torch.bool)
        for block in range(config.depth):
            hidden = torch.zeros(alive.shape).masked_fill(~alive, -torch.inf)
            y, weights, key_value = reference.attention(x, block, hidden)
            if (gate := gate_of.get(block)) is not None:
                length = key_value[1].transpose(1, 2).flatten(2).norm(dim=2)
                score = weights[:, :, 0].sum(dim=1) * length
                margin = torch.stack([sample(s, a) for s, a in zip(score, alive, strict=True)])
                keep = yield gate, margin
                alive = alive & keep
                values |= {margin_name(gate): margin, decision_name(gate): alive}
            x = torch.where(alive[..., None], reference.feed_forward(y, block), x)
            maps.append(x.masked_fill(~alive[..., None], torch.nan))  # nothing is left of those
        return Passed(reference.classify(x), maps, values)


def sample(score: Tensor, alive: Tensor) -> Tensor:
    """Margins `[S]` of one image's significances `[S]`; positive where a sample picks the token."""
    import torch

    margin = torch.full(score.shape, -torch.inf)
    margin[0] = torch.inf
    there = alive.clone()
    there[0] = False
    places = there.nonzero()[:, 0]
    if len(places) < 2:
        margin[places] = FAR
        return margin
    ranked, order = (score[places] / score[places].sum()).sort(stable=True)
    cdf = ranked.cumsum(0)
    cdf = (cdf - cdf.min()) / (cdf.max() - cdf.min())
    count = len(score) - 1  # as many samples as the image had patches at first
    start = cdf[cdf > 0].min()
    samples = start + (1 - start) * torch.arange(count) / max(count - 1, 1)
    nearest = (samples[:, None] - cdf[None, :]).abs().argmin(dim=1)
    picked = torch.zeros(len(places), dtype=torch.bool)
    picked[nearest] = True
    half = (cdf[1:] + cdf[:-1]) / 2
    far = torch.tensor([FAR])
    left, right = torch.cat([-far, half]), torch.cat([half, far])
    inside = torch.minimum(samples[:, None] - left, right - samples[:, None]).amax(dim=0).abs()
    gap = torch.cat([torch.tensor([torch.inf]), ranked.diff(), torch.tensor([torch.inf])])
    size = torch.minimum(inside, torch.minimum(gap[1:], gap[:-1])).clamp_min(TINY)
    margin[places[order]] = torch.where(picked, size, -size)
    return margin
