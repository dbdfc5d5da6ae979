"""Boxes in ONNX graphs: anchors, decoding, suppression, RoIAlign.

Boxes are left, top, right, bottom in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from svit_deploy.graph.builder import FLOAT, GraphBuilder
from svit_deploy.graph.maps import Dim, MapSize, vector

RATIOS = (0.5, 1.0, 2.0)
ANCHOR_SCALE = 8
LARGEST_STEP = math.log(1000 / 16)
"""What a box may grow or shrink by, as a logarithm."""
FINEST = 56
"""Square root of the area, in pixels, below which a box is cut from the finest map."""
NEVER = -1.0
"""A score below every threshold."""


def number(graph: GraphBuilder, value: float) -> str:
    return graph.constant(value, np.float32)


def least(graph: GraphBuilder, length: Dim, limit: int) -> Dim:
    """The smaller of a length and a number."""
    if isinstance(length, int):
        return min(length, limit)
    return graph.op("Min", length, graph.vector(limit))


def anchors(graph: GraphBuilder, size: MapSize, stride: int) -> str:
    """`[rows * columns * 3, 4]`: three shapes around the corner, not the centre, of each cell."""
    ratios = np.array(RATIOS)
    half = stride * ANCHOR_SCALE / 2 * np.stack([ratios**-0.5, ratios**0.5], 1)
    shapes = np.concatenate([-half, half], 1)
    if isinstance(size.rows, int) and isinstance(size.columns, int):
        places = np.mgrid[: size.rows, : size.columns][[1, 0, 1, 0]] * float(stride)
        fixed = np.moveaxis(places, 0, -1)[:, :, None] + shapes
        return graph.constant(fixed.reshape(-1, 4), np.float32)

    def along(length: Dim, axis: int) -> str:
        cells = graph.op("Mul", graph.range(graph.vector(length)), graph.constant(stride))
        return graph.op("Unsqueeze", graph.op("Cast", cells, to=FLOAT), graph.constant([axis, 2]))

    shape = vector(graph, (size.rows, size.columns, 1))
    x = graph.op("Expand", along(size.columns, 0), shape)
    y = graph.op("Expand", along(size.rows, 1), shape)
    corners = graph.op("Concat", x, y, x, y, axis=2)
    corners = graph.op("Unsqueeze", corners, graph.constant([2]))
    return graph.reshape(graph.op("Add", corners, graph.constant(shapes, np.float32)), -1, 4)


def decode(graph: GraphBuilder, boxes: str, deltas: str, limit: str) -> str:
    """Boxes `[..., 4]` moved and scaled by `deltas [..., 4]` (R-CNN's parametrisation).

    Args:
        limit: `[..., 4]`, width, height, width, height to clip to.
    """
    halves = graph.constant([2, 2])
    corner, opposite = graph.ops("Split", boxes, halves, outputs=2, axis=-1)
    move, grow = graph.ops("Split", deltas, halves, outputs=2, axis=-1)
    size = graph.op("Sub", opposite, corner)
    centre = graph.op("Mul", graph.op("Add", corner, opposite), number(graph, 0.5))
    centre = graph.op("Add", centre, graph.op("Mul", size, move))
    step = number(graph, LARGEST_STEP)
    grow = graph.op("Exp", graph.op("Clip", grow, number(graph, -LARGEST_STEP), step))
    half = graph.op("Mul", graph.op("Mul", size, grow), number(graph, 0.5))
    low, high = graph.op("Sub", centre, half), graph.op("Add", centre, half)
    corners = graph.op("Concat", low, high, axis=-1)
    return graph.op("Min", graph.op("Max", corners, number(graph, 0)), limit)


def sides(graph: GraphBuilder, boxes: str) -> str:
    """Width and height `[..., 2]` of boxes `[..., 4]`."""
    corner, opposite = graph.ops("Split", boxes, graph.constant([2, 2]), outputs=2, axis=-1)
    return graph.op("Sub", opposite, corner)


def true_rows(graph: GraphBuilder, mask: str) -> str:
    """Index tuples of the true elements in row-major order, `[T, rank]` int64."""
    return graph.op("Transpose", graph.op("NonZero", mask), perm=(1, 0))


def column(graph: GraphBuilder, table: str, index: int) -> str:
    """One column of `[T, K]` as `[T]`."""
    return graph.op("Gather", table, graph.constant(index), axis=1)


def by_group(graph: GraphBuilder, group: str, groups: str, scores: str) -> str:
    """Scores `[B, T]` as `[B, groups, T]`, `NEVER` in every row but that of the group.

    So one operator suppresses boxes of the same group only.

    Args:
        group: `[T]`, the group of each box.
        groups: `[K]`, the groups there are.
    """
    same = graph.op("Equal", graph.op("Unsqueeze", groups, graph.constant([1])), group)
    spread = graph.op("Unsqueeze", scores, graph.constant([1]))
    return graph.op("Where", same, spread, number(graph, NEVER))


def roi_align(
    graph: GraphBuilder, maps: Sequence[str], boxes: str, image: str, side: int
) -> tuple[str, str]:
    """RoIAlign, each box from the map (of stride 4, 8, 16, 32) that suits its size.

    Args:
        boxes: `[R, 4]`.
        image: `[R]`, the image of the batch that each box is in.

    Returns:
        `[R, C, side, side]`, in an order of its own, and that order `[R]`.
    """
    width_height = sides(graph, boxes)
    area = graph.op("ReduceProd", width_height, graph.constant([1]), keepdims=0)
    scale = graph.op("Div", graph.op("Sqrt", area), number(graph, FINEST))
    scale = graph.op("Unsqueeze", graph.op("Add", scale, number(graph, 1e-6)), graph.constant([1]))
    # Level l starts at 2^l: counting the starts that are reached is floor(log2(scale)), clipped.
    starts = graph.constant([[2, 4, 8]], np.float32)
    reached = graph.op("Cast", graph.op("GreaterOrEqual", scale, starts), to=7)
    level = graph.op("ReduceSum", reached, graph.constant([1]), keepdims=0)
    orders, parts = [], []
    for number_of, feature in enumerate(maps):
        here = graph.op("Equal", level, graph.constant(number_of))
        order = graph.op("Squeeze", graph.op("NonZero", here), graph.constant([0]))
        orders.append(order)
        parts.append(
            graph.op(
                "RoiAlign",
                feature,
                graph.op("Gather", boxes, order),
                graph.op("Gather", image, order),
                mode="avg",
                output_height=side,
                output_width=side,
                sampling_ratio=0,
                spatial_scale=0.25 / 2**number_of,
                coordinate_transformation_mode="half_pixel",
            )
        )
    return graph.op("Concat", *parts, axis=0), graph.op("Concat", *orders, axis=0)
