"""Attention in groups of an image's tokens, as windows are: constants say which token is where.

Heads are split, groups made, and both undone, in one move of rows of a head's values each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from svit_deploy.graph.builder import GraphBuilder
from svit_deploy.graph.layers import QKV, attend_heads


@dataclass(frozen=True)
class Groups:
    """Which tokens each group has.

    Attributes:
        places: `[G, K]`, numbers of tokens; one may be in several groups.
        tokens: rows of an image.
    """

    places: np.ndarray
    tokens: int


def attend_in_groups(
    graph: GraphBuilder,
    qkv: QKV,
    queries: Groups,
    keys: Groups,
    stage: Any,
    results: int,
    *biases: str | None,
) -> str:
    """Softmax attention of the tokens of each group to those of another.

    Args:
        qkv: rows `[B * tokens, C]`; those of queries and those of keys may be of other tokens.
        stage: of H `heads` and C = `width` channels.
        results: how many tokens of an image come out; each is in a group of queries.
        biases: added to the scores `[B, G, H, K, K']`.

    Returns:
        Rows `[B * results, C]`.
    """
    heads, dim = stage.heads, stage.width // stage.heads
    query, key, value = (
        _split(graph, rows, groups, heads, dim)
        for rows, groups in zip(qkv, (queries, keys, keys), strict=True)
    )
    key = graph.op("Transpose", key, perm=(0, 1, 2, 4, 3))
    mixed = attend_heads(graph, query, key, value, dim, *biases)
    return _join(graph, mixed, queries.places, results, heads, dim)


def _split(graph: GraphBuilder, x: str, groups: Groups, heads: int, dim: int) -> str:
    """`[B * tokens, C]` -> `[B, G, H, K, D]`."""
    split = graph.reshape(x, -1, groups.tokens * heads, dim)
    rows = graph.constant(heads * groups.places[:, None])
    # Added up by what loads the graph: of a video, the numbers of all heads are megabytes.
    index = graph.op("Add", rows, graph.constant(np.arange(heads)[:, None]))
    return graph.op("Gather", split, index, axis=1)


def _join(
    graph: GraphBuilder, mixed: str, places: np.ndarray, results: int, heads: int, dim: int
) -> str:
    """`[B, G, H, K, D]` -> `[B * results, C]`, of each token from 0 on its first place."""
    inside = places.shape[1]
    first = np.unique(places, return_index=True)[1][:results]
    group, place = np.divmod(first, inside)
    rows = graph.constant((group * heads * inside + place)[:, None])
    index = graph.op("Add", rows, graph.constant(np.arange(heads) * inside))
    split = graph.reshape(mixed, -1, places.size * heads, dim)
    return graph.reshape(graph.op("Gather", split, index, axis=1), -1, heads * dim)
