"""Row moves: where the true elements of a mask are, rows by index, rows put back."""

from __future__ import annotations

from svit_deploy.graph.builder import INT32, INT64, GraphBuilder


def with_prefix(graph: GraphBuilder, positions: str, prefix: int) -> str:
    """Positions `[B, K]` after the prefix -> places among all tokens `[B, prefix + K]`."""
    if not prefix:
        return positions
    batch = graph.op("Concat", graph.shape(positions, 0), graph.constant([1]), axis=0)
    first = graph.op("Expand", graph.constant([list(range(prefix))]), batch)
    return graph.op("Concat", first, graph.op("Add", positions, graph.constant(prefix)), axis=1)


def flat_rows(graph: GraphBuilder, places: str, tokens: int | str) -> str:
    """Places `[B, K]` among `tokens` of each image -> rows `[B * K]` of a map `[B * tokens, C]`.

    Args:
        tokens: a number or an int64 vector of one.
    """
    first_row = graph.op("Mul", graph.range(graph.shape(places, 0)), graph.vector(tokens))
    rows = graph.op("Add", places, graph.op("Unsqueeze", first_row, graph.constant([1])))
    return graph.reshape(rows, -1)


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
