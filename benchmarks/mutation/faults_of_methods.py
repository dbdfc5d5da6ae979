"""Faults in what one method or backbone alone computes."""

from __future__ import annotations

import numpy as np
import onnx

from mutation.fault import Change, Fault
from mutation.graph import Graph, Steps
from svit_deploy import names

FLOAT = onnx.TensorProto.FLOAT


def times(op: str, scope: str, position: int, factor: float, number: int = 0) -> Change:
    """One input of an operator, a value or a constant, times a factor."""

    def change(graph: Graph) -> None:
        node = graph.node(op, scope, number)
        name = node.input[position]
        if name in graph.tensors:
            graph.change_input(node, position, lambda values: values * factor)
        else:
            graph.replace_input(
                node, position, lambda s, value: s.op("Mul", value, s.number(factor, name))
            )

    return change


def operator(op: str, scope: str, other: str, number: int = 0) -> Change:
    """Another operator of the same inputs."""

    def change(graph: Graph) -> None:
        node = graph.node(op, scope, number)
        node.op_type = other
        graph.touch(node)

    return change


def following(graph: Graph, value: str, *ops: str) -> onnx.NodeProto:
    """The last of a chain of operators that begins at a value."""
    node = None
    for op in ops:
        node = next(n for n in graph.nodes if value in n.input and n.op_type == op)
        value = node.output[0]
    assert node is not None
    return node


def merged_into_the_next(gate: int) -> Change:
    """Of merged tokens: each goes into the neighbour of the token that is nearest."""

    def change(graph: Graph) -> None:
        def neighbour(steps: Steps, target: str) -> str:
            most = steps.op("ReduceMax", target, keepdims=0)
            return steps.op("Min", steps.op("Add", target, steps.constant(1)), most)

        graph.replace(names.target_name(gate), neighbour)

    return change


def merged_without_weights(gate: int) -> Change:
    """Means of tokens in which those that stand for many count as one."""

    def change(graph: Graph) -> None:
        node = following(graph, names.target_name(gate), "Unsqueeze", "Equal", "Cast", "Mul")
        graph.replace_input(node, 1, lambda s, size: s.op("Div", size, size))

    return change


def ranked_by_queries(block: int) -> Change:
    """Tokens are compared by their queries where keys belong."""

    def change(graph: Graph) -> None:
        keys = graph.node("Gemm", f"block_{block}/attention", 1).output[0]
        query = graph.node("Gemm", f"block_{block}/attention", 0).output[0]
        node = next(n for n in graph.nodes if keys in n.input)
        graph.rewire(node, 0, query)

    return change


def told_as_another(graph: Graph) -> None:
    """`source` names the token before."""

    def before(steps: Steps, source: str) -> str:
        return steps.op("Max", steps.op("Sub", source, steps.constant(1)), steps.constant(0))

    graph.replace(names.SOURCE, before)


def fused_token(factor: float) -> Change:
    """The token that stands for all pruned ones, times a factor."""

    def change(graph: Graph) -> None:
        product = graph.node("MatMul", "block_6/select").output[0]
        graph.replace(product, lambda s, token: s.op("Mul", token, s.number(factor, product)))

    return change


def by_the_largest_head(block: int) -> Change:
    return operator("ReduceMean", f"block_{block}/attention", "ReduceMax")


def windows_shifted(graph: Graph) -> None:
    """The second block's windows one place further."""
    node = graph.node("Gather", "block_1/attention")
    graph.change_input(node, 1, lambda order: np.roll(order, 1))


def bias_of_windows(graph: Graph) -> None:
    """Relative positions read in reverse."""
    node = graph.node("Add", "block_0/attention")
    position = next(i for i in graph.constants(node))
    graph.change_input(node, position, lambda bias: np.swapaxes(bias, -1, -2))


def reversed_places(graph: Graph) -> None:
    """Patches gathered two by two in another order."""
    node = graph.node("Gather", "block_2")
    position = graph.constants(node)[-1]

    def exchanged(order: np.ndarray) -> np.ndarray:
        groups = order.reshape(-1, 4)
        return groups[:, [0, 2, 1, 3]].reshape(order.shape)

    graph.change_input(node, position, exchanged)


EVIT, TOME, EVO = "evit_fuse/static", "tome/static", "evovit/static"
ATS, LV, STVITR = "ats/dynamic", "lvvit/dense", "stvitr/static"
STVIT = "init/stvit_swin_t", "init/stvit_lvvit_t", "init/stvit_t"
FAULTS = (
    Fault("attention by 0.9 of the size", times("Add", "block_5/attention", 1, 0.9), (TOME,)),
    Fault("attention not by size", times("Add", "block_7/attention", 1, 0.0), (TOME,)),
    Fault("merged into the next token", merged_into_the_next(3), (TOME,)),
    Fault("merged without weights", merged_without_weights(4), (TOME,)),
    Fault("compared by queries", ranked_by_queries(2), (TOME,)),
    Fault("told as part of another", told_as_another, (TOME,)),
    Fault("fused token lost", fused_token(0.0), (EVIT,)),
    Fault("fused token 1 % smaller", fused_token(0.99), (EVIT,)),
    Fault("ranked by the largest head", by_the_largest_head(3), (EVIT, "evit_nofuse/static")),
    Fault("tradeoff 0.45 for 0.5", times("Mul", "block_5", 1, 0.9, -2), (EVO,)),
    Fault(
        "the whole image's part lost",
        times("Gemm", "block_3/gate", 1, 0.0, 1),
        ("dynamicvit/static",),
    ),
    Fault(
        "the largest for the mean",
        operator("ReduceMean", "block_4/gate", "ReduceMax"),
        ("dynamicvit_lvvit/static",),
    ),
    Fault(
        "sums for lengths of values",
        operator("ReduceL2", "block_5/attention/gate", "ReduceL1"),
        (ATS,),
    ),
    Fault("values twice as long", times("ReduceL2", "block_8/attention/gate", 0, 2.0), (ATS,)),
    Fault(
        "sampled between other points",
        times("Mul", "block_6/attention/gate", 1, 0.9, 2),
        (ATS, "ats/masked"),
    ),
    Fault("gone tokens are seen", operator("And", "block_7/attention/gate", "Or"), ("ats/masked",)),
    Fault("second head at 0.45", times("Mul", "head", 1, 0.9), (LV, "dynamicvit_lvvit/static")),
    Fault("mean for the best patch", operator("ReduceMax", "head", "ReduceMean"), (LV,)),
    Fault("what is added 1 % smaller", times("Gemm", "block_3/mlp", 1, 0.99, 1), (LV,)),
    Fault("windows one place further", windows_shifted, (STVITR,)),
    Fault("relative positions in reverse", bias_of_windows, (STVITR,)),
    Fault("patches merged in another order", reversed_places, (STVITR,)),
    Fault(
        "the largest for each semantic token",
        operator("ReduceMax", "block_5/attention", "ReduceMean"),
        (STVITR,),
    ),
    Fault("learnt tokens left out", times("Add", "block_7", 1, 0.0), STVIT[:1]),
    Fault("learnt tokens by half", times("Add", "block_5", 1, 0.5), STVIT[1:]),
    Fault("mean of tokens 1 % off", times("ReduceMean", "head", 0, 1.01), (STVITR, EVO)),
)
