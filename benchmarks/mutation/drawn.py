"""Faults drawn at random: one constant or attribute of one node, changed by a random factor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, helper

from mutation.graph import Graph

Change = Callable[[Graph], str]
NEVER = frozenset(
    {"to", "axis", "axes", "start", "end", "batch_dims", "kernel_shape", "num_outputs"}
)
"""Attributes that say what an operator is made for: no runtime loads it with another value."""


def draw(graph: Graph, rng: np.random.Generator) -> str:
    """Puts a random fault into a graph, and says in words what it is."""
    nodes = [node for node in graph.nodes if graph.constants(node) or _attributes(node)]
    node = nodes[rng.integers(len(nodes))]
    things: list[Any] = [*graph.constants(node), *_attributes(node)]
    thing = things[rng.integers(len(things))]
    if isinstance(thing, int):
        return _change_constant(graph, node, thing, rng)
    return _change_attribute(graph, node, thing, rng)


def _attributes(node: onnx.NodeProto) -> list[AttributeProto]:
    """Those that hold numbers."""
    kinds = (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT)
    return [a for a in node.attribute if a.type in kinds and a.name not in NEVER]


def _factor(rng: np.random.Generator) -> float:
    """Between 1 ± 0.001 and 1 ± 1, small and large ones alike."""
    return float(1 + rng.choice([-1, 1]) * 10 ** rng.uniform(-3, 0))


def _change_constant(
    graph: Graph, node: onnx.NodeProto, position: int, rng: np.random.Generator
) -> str:
    name = node.input[position]
    values = graph.constant(name)
    assert values is not None
    if not values.size:
        return f"nothing in {name}"
    if values.dtype.kind == "f":
        which, words = _where(values.shape, rng)
        if not np.isfinite(values[which]).any():
            return f"nothing finite in {name}"
        factor = _factor(rng)
        values[which] = values[which] * factor
        words = f"{words} times {factor:.4g}"
    else:
        place = np.unravel_index(rng.integers(values.size), values.shape)
        old = values[place]
        values[place] = not old if values.dtype == bool else old + rng.choice([-1, 1])
        words = f"{values[place]} for {old}"
    graph.set_input(node, position, values)
    return f"{node.name}: {name} {words}"


def _where(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Any, str]:
    """One number, one row, or all of an array."""
    kind = rng.choice(["number", "row", "all"]) if shape else "all"
    if kind == "number":
        place = tuple(int(rng.integers(size)) for size in shape)
        return place, str(list(place))
    if kind == "row":
        row = int(rng.integers(shape[0]))
        return row, f"row {row}"
    return ..., "all"


def _change_attribute(
    graph: Graph, node: onnx.NodeProto, attribute: AttributeProto, rng: np.random.Generator
) -> str:
    old = helper.get_attribute_value(attribute)
    new: Any
    if attribute.type == AttributeProto.FLOAT:
        new = old * _factor(rng)
    elif attribute.name == "perm" and len(old) > 1:
        new = list(old)
        a, b = rng.choice(len(new), 2, replace=False)
        new[a], new[b] = new[b], new[a]
    elif attribute.type == AttributeProto.INTS:
        new = list(old)
        new[rng.integers(len(new))] += rng.choice([-1, 1])
    else:
        new = 1 - old if old in (0, 1) else old + int(rng.choice([-1, 1]))
    graph.set_attribute(node, attribute.name, new)
    return f"{node.name}: {attribute.name} {new} for {old}"
