"""The core: how a gated block runs on the kept tokens only, in each token mode.

The feature map is kept as rows `[B * S, C]`, image after image. A `Selection` says which rows a
block computes (`take`), how they attend to each other (`attend`), and how the results go back
(`put`); pruned rows keep their value, so a later gate may keep them again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from svit_deploy.export.builder import INT32, INT64, GraphBuilder
from svit_deploy.export.layers import MASKED, QKV, Attend, attend_heads, attention

LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Selection:
    """The kept tokens of one gated block.

    Attributes:
        take: feature map `[B * S, C]` -> the rows to compute `[R, C]`.
        attend: attention among those rows, each image by itself.
        put: feature map, rows taken, rows computed -> new feature map.
        keep: `[B, S]` bool, the tokens whose values the block replaces.
        overflow: `[B, 1]` int64, kept tokens beyond the budget, or None without a budget.
        lengths: `[B + 1]` int32, the kept tokens of all images before each, in dynamic mode.
        margin: `[B, S]` float32, if the gate's own margins are not of all tokens in order.
        source: `[B, S]` int64, the token that each is part of, for methods that merge.
    """

    take: Callable[[str], str]
    attend: Attend
    put: Callable[[str, str, str], str]
    keep: str
    overflow: str | None = None
    lengths: str | None = None
    margin: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class TokenGrid:
    """Tokens per image S and the head layout that attention needs."""

    num_tokens: int
    num_heads: int
    head_dim: int


def attend_to_all(graph: GraphBuilder, grid: TokenGrid, bias: str | None = None) -> Attend:
    """Attention among all S rows of each image, with an optional key bias `[B, 1, 1, S]`."""
    return lambda qkv: attention(graph, qkv, grid.num_tokens, grid.num_heads, grid.head_dim, bias)


def key_bias(graph: GraphBuilder, visible: str) -> str:
    """`[B, K]` bool -> `[B, 1, 1, K]`: 0 for a visible key, `MASKED` for any other."""
    zero, masked = graph.number(0), graph.number(MASKED)
    return graph.op("Unsqueeze", graph.op("Where", visible, zero, masked), graph.constant([1, 2]))


def true_positions(graph: GraphBuilder, mask: str) -> str:
    """Positions of the true elements of a mask in row-major order, `[T]` int64."""
    positions = graph.op("NonZero", graph.reshape(mask, -1))
    return graph.op("Squeeze", positions, graph.constant([0]))


# What a TensorRT plugin may do in its own way (docs/plugins.md): each is a function of the graph,
# written out as standard operators, and beside its node as the function's body with --plugins.


def compact_rows(graph: GraphBuilder, mask: str) -> tuple[str, ...]:
    """Where the true elements of a mask `[B, S]` are, packed row by row and slot by slot.

    Returns:
        rows `[T]`: their flat positions, ascending. slots `[B, K]`: the packed row in each slot of
        an image, -1 in empty ones, K being the largest count. places `[T]`: the flat slot of each
        packed row. lengths `[B + 1]` int32: cumulative counts, from 0. counts `[B]`. T and K.
    """
    rows = true_positions(graph, mask)
    counts = graph.op("ReduceSum", graph.op("Cast", mask, to=INT64), graph.constant([1]))  # [B, 1]
    starts = graph.op("CumSum", counts, graph.constant(0), exclusive=1)  # [B, 1]
    fullest = graph.op("ReduceMax", counts, keepdims=0)
    numbers = graph.op("Range", graph.constant(0), fullest, graph.constant(1))  # [K]
    filled = graph.op("Less", numbers, counts)  # [B, K]
    slots = graph.op("Where", filled, graph.op("Add", starts, numbers), graph.constant(-1))
    places = true_positions(graph, filled)
    flat_counts = graph.op("Squeeze", counts, graph.constant([1]))
    total = graph.op("ReduceSum", flat_counts, keepdims=1)  # [1]
    lengths = graph.op("Concat", graph.op("Squeeze", starts, graph.constant([1])), total, axis=0)
    lengths = graph.op("Cast", lengths, to=INT32)
    return rows, slots, places, lengths, flat_counts, graph.op("Squeeze", total), fullest


def gather_rows(graph: GraphBuilder, x: str, indices: str) -> str:
    """Rows of `[R, C]` by index: `[*indices, C]`."""
    return graph.function("SvitGather", lambda g, *xs: (g.op("Gather", *xs),), x, indices)[0]


def scatter_rows(graph: GraphBuilder, x: str, rows: str, updates: str) -> str:
    """`[R, C]` with the rows numbered `rows` `[T]`, all different, replaced by `[T, C]`."""

    def body(g: GraphBuilder, x: str, rows: str, updates: str) -> tuple[str, ...]:
        return (g.op("ScatterND", x, g.op("Unsqueeze", rows, g.constant([1])), updates),)

    return graph.function("SvitScatter", body, x, rows, updates)[0]


def select_masked(graph: GraphBuilder, grid: TokenGrid, decision: str) -> Selection:
    """All tokens are computed; pruned keys are hidden and pruned rows restored.

    Args:
        decision: `[B, S]` bool.
    """
    kept_rows = graph.reshape(decision, -1, 1)
    return Selection(
        take=lambda x: x,
        attend=attend_to_all(graph, grid, key_bias(graph, decision)),
        put=lambda x, taken, y: graph.op("Where", kept_rows, y, taken),
        keep=decision,
    )


def select_dynamic(graph: GraphBuilder, grid: TokenGrid, decision: str) -> Selection:
    """Kept tokens of all images packed into T rows; attention padded to the fullest image.

    Linear layers see exactly T rows. For attention the rows are laid out as `[B, Kmax]` slots,
    the empty ones hidden as keys, and the real ones gathered back. T and Kmax may be 0.

    Args:
        decision: `[B, S]` bool.
    """
    rows, slots, places, lengths, *_ = graph.function(
        "SvitCompact", compact_rows, decision, outputs=7, index_bits=64
    )
    filled = graph.op("GreaterOrEqual", slots, graph.constant(0))  # [B, Kmax]
    bias = key_bias(graph, filled)
    # The row in each slot; an empty slot repeats row 0, which the bias hides.
    table = graph.op("Max", slots, graph.constant(0))
    heads, dim = grid.num_heads, grid.head_dim
    # Rows of D values, one per row and head: moving those splits the heads in the same pass.
    head_numbers = graph.constant([[[head] for head in range(heads)]])  # [1, H, 1]
    first = graph.op(
        "Mul", graph.op("Unsqueeze", table, graph.constant([1])), graph.constant(heads)
    )
    head_table = graph.op("Add", first, head_numbers)  # [B, H, Kmax]

    def attend(qkv: QKV) -> str:
        query, key, value = (gather_rows(graph, graph.reshape(t, -1, dim), head_table) for t in qkv)
        key = graph.op("Transpose", key, perm=(0, 1, 3, 2))
        mixed = attend_heads(graph, query, key, value, dim, bias)
        mixed = graph.op("Transpose", mixed, perm=(0, 2, 1, 3))
        return gather_rows(graph, graph.reshape(mixed, -1, heads * dim), places)

    return Selection(
        take=lambda x: gather_rows(graph, x, rows),
        attend=attend,
        put=lambda x, taken, y: scatter_rows(graph, x, rows, y),
        keep=decision,
        lengths=lengths,
    )


def select_budget(
    graph: GraphBuilder, grid: TokenGrid, decision: str, margin: str, budget: int
) -> Selection:
    """The `budget` tokens of highest margin, in static shapes.

    Where an image keeps fewer, the spare rows are hidden as keys and written back unchanged;
    where it keeps more, the lowest margins are pruned and `overflow` counts them.

    Args:
        decision: `[B, S]` bool.
        margin: `[B, S]` float32.
        budget: K, rows per image, at most S.
    """
    ranked = graph.op("Where", decision, margin, graph.constant(LOWEST, np.float32))
    best, index = graph.ops("TopK", ranked, graph.constant([budget]), outputs=2, axis=1)
    valid = graph.op("Greater", best, graph.constant(LOWEST, np.float32))  # [B, K]
    first_row = graph.op(
        "Mul", graph.range(graph.shape(decision, 0)), graph.constant(grid.num_tokens)
    )
    rows = graph.op("Add", index, graph.op("Unsqueeze", first_row, graph.constant([1])))
    flat_rows = graph.reshape(rows, -1)
    valid_rows = graph.reshape(valid, -1, 1)
    bias = key_bias(graph, valid)

    def put(x: str, taken: str, y: str) -> str:
        return scatter_rows(graph, x, flat_rows, graph.op("Where", valid_rows, y, taken))

    none = graph.op("And", decision, graph.constant(False, bool))
    wanted = graph.op("Cast", decision, to=INT64)
    wanted = graph.op("ReduceSum", wanted, graph.constant([1]), keepdims=1)
    beyond = graph.op("Sub", wanted, graph.constant(budget))
    return Selection(
        take=lambda x: gather_rows(graph, x, flat_rows),
        attend=lambda qkv: attention(graph, qkv, budget, grid.num_heads, grid.head_dim, bias),
        put=put,
        keep=graph.op("ScatterElements", none, index, valid, axis=1),
        overflow=graph.op("Max", beyond, graph.constant(0)),
    )
