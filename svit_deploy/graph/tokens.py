"""The core: how a gated block runs on the kept tokens only, in each token mode.

The feature map is kept as rows `[B * S, C]`, image after image. A `Selection` says which rows a
block computes (`take`), how they attend to each other (`attend`), and how the results go back
(`put`); pruned rows keep their value, so a later gate may keep them again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np
from onnx import TensorProto

from svit_deploy.graph.builder import FLOAT, INT64, GraphBuilder
from svit_deploy.graph.layers import Attend, attention
from svit_deploy.graph.packed import TokenGrid, key_bias, pack
from svit_deploy.graph.ranking import top_k
from svit_deploy.graph.rows import flat_rows, gather_rows, scatter_rows
from svit_deploy.model.budget import UNIT, Budget

TINY = 1e-30
"""Instead of 0 where a logarithm, a quotient or a sign is taken."""
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
        lengths: `[B + 1]` int32, the kept tokens of all images before each, in dynamic mode
            for more than one image.
    """

    take: Callable[[str], str]
    attend: Attend
    put: Callable[[str, str, str], str]
    keep: str
    overflow: str | None = None
    lengths: str | None = None


def attend_to_all(graph: GraphBuilder, grid: TokenGrid, bias: str | None = None) -> Attend:
    """Attention among all S rows of each image, with an optional key bias `[B, 1, 1, S]`."""
    return lambda qkv: attention(graph, qkv, grid.num_tokens, grid.num_heads, grid.head_dim, bias)


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

    Args:
        decision: `[B, S]` bool.
    """
    packed = pack(graph, grid, decision)
    return Selection(
        take=lambda x: gather_rows(graph, x, packed.rows),
        attend=packed.attend,
        put=lambda x, taken, y: scatter_rows(graph, x, packed.rows, y),
        keep=decision,
        lengths=packed.lengths,
    )


def select_budget(
    graph: GraphBuilder,
    grid: TokenGrid,
    decision: str,
    margin: str,
    budget: int | str,
    *,
    most: int,
) -> Selection:
    """The `budget` tokens of highest margin, in static shapes.

    Where an image keeps fewer, the spare rows are hidden as keys and written back unchanged;
    where it keeps more, the lowest margins are pruned and `overflow` counts them.

    Args:
        decision: `[B, S]` bool.
        margin: `[B, S]` float32.
        budget: K, rows per image, at most S; a number or an int64 vector.
        most: what K is at most.
    """
    ranked = graph.op("Where", decision, margin, graph.constant(LOWEST, np.float32))
    best, index = top_k(graph, ranked, budget, most)
    valid = graph.op("Greater", best, graph.constant(LOWEST, np.float32))  # [B, K]
    rows = flat_rows(graph, index, grid.num_tokens)
    valid_rows = graph.reshape(valid, -1, 1)
    bias = key_bias(graph, valid)

    def put(x: str, taken: str, y: str) -> str:
        return scatter_rows(graph, x, rows, graph.op("Where", valid_rows, y, taken))

    none = graph.op("And", decision, graph.constant(False, bool))
    wanted = graph.op("Cast", decision, to=INT64)
    wanted = graph.op("ReduceSum", wanted, graph.constant([1]), keepdims=1)
    beyond = graph.op("Sub", wanted, graph.vector(budget))
    return Selection(
        take=lambda x: gather_rows(graph, x, rows),
        attend=lambda qkv: attention(graph, qkv, budget, grid.num_heads, grid.head_dim, bias),
        put=put,
        keep=graph.op("ScatterElements", none, index, valid, axis=1),
        overflow=graph.op("Max", beyond, graph.constant(0)),
    )


def budget_rows(graph: GraphBuilder, budget: Budget, tokens: int | str) -> int | str:
    """`Budget.rows` of the tokens of an image, a number or an int64 vector."""
    if budget.share is None or isinstance(tokens, int):
        return budget.rows(tokens if isinstance(tokens, int) else 0)
    parts = graph.op("Mul", tokens, graph.vector(budget.share))
    parts = graph.op("Add", parts, graph.vector(UNIT - 1))
    return graph.op("Div", parts, graph.vector(UNIT))


def share_of(
    graph: GraphBuilder, share: float, tokens: int | str, prefix: int, *, up: bool = False
) -> int | str:
    """int(share * N), or rounded `up`, of N = tokens - prefix, as Python's floats compute it."""
    if isinstance(tokens, int):
        return (ceil if up else int)((tokens - prefix) * share)
    patches = graph.op("Sub", tokens, graph.vector(prefix))
    exact = graph.op("Cast", patches, to=TensorProto.DOUBLE)
    exact = graph.op("Mul", exact, graph.constant([share], np.float64))
    exact = graph.op("Ceil" if up else "Floor", exact)
    return graph.op("Cast", exact, to=INT64)


# What methods that fix how many tokens remain have in common. Positions count an image's tokens
# after its prefix (the class token, which always stays in front), in the order they have by then.


def top_tokens(graph: GraphBuilder, scores: str, count: int | str, most: int = 0) -> str:
    """Positions of the highest scores `[B, M]` of each image, best first: `[B, count]` int64.

    Args:
        most: what a count that is no number is at most.
    """
    return top_k(graph, scores, count, count if isinstance(count, int) else most)[1]


def attention_margin(graph: GraphBuilder, scores: str) -> str:
    """The logarithm of attention `[B, M]`: rounding inside a block moves all of it alike."""
    return graph.op("Log", graph.op("Max", scores, graph.constant(TINY, np.float32)))


def unit_rows(graph: GraphBuilder, x: str) -> str:
    """float32 `[…, C]` scaled to length 1, so that products are cosines; zeros stay zeros."""
    length = graph.op("ReduceL2", x, graph.constant([-1]), keepdims=1)
    return graph.op("Div", x, graph.op("Max", length, graph.constant(TINY, np.float32)))


def merge_tokens(
    graph: GraphBuilder, x: str, moved: str, weight: str, moved_weight: str, target: str, count: int
) -> tuple[str, str]:
    """Tokens as the weighted means of themselves and of all that are merged into them.

    One product with a matrix of shares: sums of all that a token stands for could leave the range
    of half precision, means cannot.

    Args:
        x, moved: `[B, K, C]` and `[B, M, C]`, in the graph's precision.
        weight, moved_weight: `[B, K, 1]` (or a constant that broadcasts) and `[B, M]`, float32.
        target: `[B, M]` int64, the one of the K that each is merged into.
        count: K.

    Returns:
        `[B, K, C]`, and the sums of the weights `[B, K, 1]`.
    """
    into = graph.op("Unsqueeze", target, graph.constant([1]))  # [B, 1, M]
    match = graph.op("Equal", into, graph.constant([[place] for place in range(count)]))
    shares = graph.op("Cast", match, to=FLOAT)  # [B, K, M]
    shares = graph.op("Mul", shares, graph.op("Unsqueeze", moved_weight, graph.constant([1])))
    total = graph.op("ReduceSum", shares, graph.constant([2]), keepdims=1)
    total = graph.op("Add", total, weight)
    own = graph.to_precision(graph.op("Div", weight, total))
    gain = graph.op("MatMul", graph.to_precision(graph.op("Div", shares, total)), moved)
    return graph.op("Add", graph.op("Mul", x, own), gain), total
