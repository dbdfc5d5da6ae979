"""The best of each image's tokens in order, however many: TensorRT's TopK stops at 3840."""

from __future__ import annotations

import numpy as np

from svit_deploy.graph.builder import GraphBuilder

MOST_OF_TOPK = 3840
"""The largest K that TensorRT's TopK takes, from 10.3 to 11.1 and in TensorRT-RTX (NvInfer.h)."""


def top_k(
    graph: GraphBuilder, scores: str, count: int | str, most: int, *, largest: bool = True
) -> tuple[str, str]:
    """The first `count` of `[B, M]` float32, the first of equal ones first.

    Where that may be more than TensorRT's TopK takes, it is done in equal steps: what one step has
    found is out of the reach of the next. The order is the same. (Infinities on the side where
    nothing is chosen count as the last finite number there.)

    Args:
        count: K, a number or an int64 vector.
        most: what K is at most.
        largest: whether the highest are first, or the lowest.

    Returns:
        Values and positions `[B, K]`.
    """
    order = {} if largest else {"largest": 0}
    steps = -(-most // MOST_OF_TOPK)
    if steps <= 1:
        best, index = graph.ops("TopK", scores, graph.vector(count), outputs=2, axis=1, **order)
        return best, index
    side = -1 if largest else 1
    end = graph.constant(side * np.finfo(np.float32).max, np.float32)
    beyond = graph.constant(side * np.inf, np.float32)
    left, found = graph.op("Max" if largest else "Min", scores, end), list[str]()
    for step in range(steps):
        part = _part(graph, count, step, steps)
        index = graph.ops("TopK", left, part, outputs=2, axis=1, **order)[1]
        found.append(index)
        if step < steps - 1:
            gone = graph.op("Expand", beyond, graph.op("Shape", index))
            left = graph.op("ScatterElements", left, index, gone, axis=1)
    index = graph.op("Concat", *found, axis=1)
    return graph.op("GatherElements", scores, index, axis=1), index


def _part(graph: GraphBuilder, count: int | str, step: int, steps: int) -> str:
    """What of K a step finds: all together K, and none more than K / steps rounded up."""
    if isinstance(count, int):
        return graph.vector((count + step) // steps)
    return graph.op("Div", graph.op("Add", count, graph.vector(step)), graph.vector(steps))
