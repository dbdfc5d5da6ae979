"""The core: how a gated block runs on the kept tokens only, in each token mode.

The feature map is kept as rows `[B * S, C]`, image after image. A `Selection` says which rows a
block computes (`take`), how they attend to each other (`attend`), and how the results go back
(`put`); pruned rows keep their value, so a later gate may keep them again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from svit_deploy.export.builder import INT64, GraphBuilder
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
    """

    take: Callable[[str], str]
    attend: Attend
    put: Callable[[str, str, str], str]
    keep: str
    overflow: str | None = None


@dataclass(frozen=True)
class TokenGrid:
    """Tokens per image S, a number or an int64 vector, and the head layout of attention.

    With `single` there is never more than one image, so packed slots are all filled.
    """

    num_tokens: int | str
    num_heads: int
    head_dim: int
    single: bool = False


def attend_to_all(graph: GraphBuilder, grid: TokenGrid, bias: str | None = None) -> Attend:
    """Attention among all S rows of each image, with an optional key bias `[B, 1, 1, S]`."""
    width = grid.num_heads * grid.head_dim

    def attend(qkv: QKV) -> str:
        images = (graph.reshape(t, -1, grid.num_tokens, width) for t in qkv)
        return attention(graph, images, grid.num_heads, grid.head_dim, bias)

    return attend


def key_bias(graph: GraphBuilder, visible: str) -> str:
    """`[B, K]` bool -> `[B, 1, 1, K]` float32: 0 for a visible key, `MASKED` for any other."""
    zero, masked = graph.constant(0, np.float32), graph.constant(MASKED, np.float32)
    return graph.op("Unsqueeze", graph.op("Where", visible, zero, masked), graph.constant([1, 2]))


def true_positions(graph: GraphBuilder, mask: str) -> str:
    """Positions of the true elements of a mask in row-major order, `[T]` int64."""
    positions = graph.op("NonZero", graph.reshape(mask, -1))
    return graph.op("Squeeze", positions, graph.constant([0]))


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
    rows = true_positions(graph, decision)  # [T]
    counts = graph.op("Cast", decision, to=INT64)
    counts = graph.op("ReduceSum", counts, graph.constant([1]), keepdims=1)  # [B, 1]
    starts = graph.op("CumSum", counts, graph.constant(0), exclusive=1)  # [B, 1]
    fullest = graph.op("ReduceMax", counts, keepdims=0)  # Kmax
    slots = graph.op("Range", graph.constant(0), fullest, graph.constant(1))  # [Kmax]
    filled = graph.op("Less", slots, counts)  # [B, Kmax]
    # The row in each slot; an empty slot repeats row 0, which the bias hides.
    table = graph.op("Where", filled, graph.op("Add", starts, slots), graph.constant(0))
    bias = None if grid.single else key_bias(graph, filled)
    heads, dim = grid.num_heads, grid.head_dim
    # Rows of D values, one per row and head: moving those splits the heads in the same pass.
    head_numbers = graph.constant([[[head] for head in range(heads)]])  # [1, H, 1]
    first = graph.op(
        "Mul", graph.op("Unsqueeze", table, graph.constant([1])), graph.constant(heads)
    )
    head_table = graph.op("Add", first, head_numbers)  # [B, H, Kmax]
    slot_of_row = true_positions(graph, filled)  # [T]
    scatter_rows = graph.op("Unsqueeze", rows, graph.constant([1]))

    def attend(qkv: QKV) -> str:
        query, key, value = (graph.op("Gather", graph.reshape(t, -1, dim), head_table) for t in qkv)
        key = graph.op("Transpose", key, perm=(0, 1, 3, 2))
        mixed = attend_heads(graph, query, key, value, dim, bias)
        mixed = graph.op("Transpose", mixed, perm=(0, 2, 1, 3))
        return graph.op("Gather", graph.reshape(mixed, -1, heads * dim), slot_of_row)

    return Selection(
        take=lambda x: graph.op("Gather", x, rows),
        attend=attend,
        put=lambda x, taken, y: graph.op("ScatterND", x, scatter_rows, y),
        keep=decision,
    )


def select_budget(
    graph: GraphBuilder, grid: TokenGrid, decision: str, margin: str, budget: int | str
) -> Selection:
    """The `budget` tokens of highest margin, in static shapes.

    Where an image keeps fewer, the spare rows are hidden as keys and written back unchanged;
    where it keeps more, the lowest margins are pruned and `overflow` counts them.

    Args:
        decision: `[B, S]` bool.
        margin: `[B, S]` float32.
        budget: K, rows per image, at most S; a number or an int64 vector.
    """
    ranked = graph.op("Where", decision, margin, graph.constant(LOWEST, np.float32))
    best, index = graph.ops("TopK", ranked, graph.vector(budget), outputs=2, axis=1)
    valid = graph.op("Greater", best, graph.constant(LOWEST, np.float32))  # [B, K]
    first_row = graph.op(
        "Mul", graph.range(graph.shape(decision, 0)), graph.vector(grid.num_tokens)
    )
    rows = graph.op("Add", index, graph.op("Unsqueeze", first_row, graph.constant([1])))
    flat_rows = graph.reshape(rows, -1)
    valid_rows = graph.reshape(valid, -1, 1)
    scatter_rows = graph.reshape(rows, -1, 1)
    bias = key_bias(graph, valid)
    width = grid.num_heads * grid.head_dim

    def attend(qkv: QKV) -> str:
        images = (graph.reshape(t, -1, budget, width) for t in qkv)
        return attention(graph, images, grid.num_heads, grid.head_dim, bias)

    def put(x: str, taken: str, y: str) -> str:
        return graph.op("ScatterND", x, scatter_rows, graph.op("Where", valid_rows, y, taken))

    none = graph.op("And", decision, graph.constant(False, bool))
    wanted = graph.op("Cast", decision, to=INT64)
    wanted = graph.op("ReduceSum", wanted, graph.constant([1]), keepdims=1)
    beyond = graph.op("Sub", wanted, graph.vector(budget))
    return Selection(
        take=lambda x: graph.op("Gather", x, flat_rows),
        attend=attend,
        put=put,
        keep=graph.op("ScatterElements", none, index, valid, axis=1),
        overflow=graph.op("Max", beyond, graph.constant(0)),
    )
