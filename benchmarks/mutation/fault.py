"""What a designed fault is, and what faults have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from mutation.graph import Graph

Change = Callable[[Graph], None]


@dataclass(frozen=True)
class Fault:
    """A fault that someone thought of.

    Attributes:
        name: what is wrong, and in which part.
        change: puts it into a graph.
        cases: names of the cases that it is for.
    """

    name: str
    change: Change
    cases: tuple[str, ...]


def of_block(graph: Graph, block: int, part: str) -> tuple[onnx.NodeProto, int]:
    """The node of a block that reads a weight, such as `attn.q.weight`, and its position."""
    for node in graph.nodes:
        if not node.name.startswith(f"block_{block}/") or "/gate/" in node.name:
            continue
        for position, name in enumerate(node.input):
            if name.endswith(part):
                return node, position
    raise LookupError(f"block {block} has no {part}")


def weights_of_block(graph: Graph, block: int) -> list[tuple[onnx.NodeProto, int]]:
    """Every weight of a block's linear layers, with its node and position."""
    return [
        (node, 1)
        for node in graph.nodes
        if node.op_type == "Gemm"
        and node.name.startswith((f"block_{block}/attention/", f"block_{block}/mlp/"))
        and "/gate/" not in node.name
        and node.input[1] in graph.tensors
    ]


def generator() -> np.random.Generator:
    """Random numbers of a fault: the same each time."""
    return np.random.default_rng(7)
