"""Faults in what decisions do to rows, and in what is told of them."""

from __future__ import annotations

import numpy as np
import onnx

from mutation.fault import Change, Fault
from mutation.faults_of_gates import ADAPTER, BUDGET, MASKED, SVIT
from mutation.graph import Graph, Steps
from svit_deploy import names
from svit_deploy.graph.packed import FAINT

# --- rows --------------------------------------------------------------------------------------


def keys_hidden_by(block: int, bias: float) -> Change:
    """What is added to the score of a key that nobody may see, in one block."""

    def change(graph: Graph) -> None:
        for node in graph.nodes:
            if node.op_type == "Where" and node.name.startswith(f"block_{block}/"):
                values = graph.constant(node.input[2])
                if values is not None and values.size == 1 and values <= FAINT:
                    graph.set_input(node, 2, bias)
                    return
        raise LookupError(f"block {block} hides no key")

    return change


def rows_shifted(block: int) -> Change:
    """Each row that a block takes is its neighbour's."""

    def change(graph: Graph) -> None:
        node = graph.node("Gather", f"block_{block}")

        def before(steps: Steps, rows: str) -> str:
            one, zero = steps.constant(1), steps.constant(0)
            return steps.op("Max", steps.op("Sub", rows, one), zero)

        graph.replace_input(node, 1, before)

    return change


def rows_put_back_reversed(block: int) -> Change:
    def change(graph: Graph) -> None:
        def reverse(steps: Steps, rows: str) -> str:
            last, end, first = steps.constant([-1]), steps.constant([-(2**62)]), steps.constant([0])
            return steps.op("Slice", rows, last, end, first, last)

        graph.replace_input(graph.node("ScatterND", f"block_{block}"), 1, reverse)

    return change


def pruned_rows_empty(block: int) -> Change:
    """Rows that a gate prunes become 0 instead of staying what they were."""

    def change(graph: Graph) -> None:
        def nothing(steps: Steps, rows: str) -> str:
            return steps.op("Sub", rows, rows)

        scope = f"block_{block}"
        if any(n.op_type == "ScatterND" and n.name.startswith(f"{scope}/") for n in graph.nodes):
            graph.replace_input(graph.node("ScatterND", scope), 0, nothing)
        else:
            node = graph.producer(names.block_name(block))
            assert node.op_type == "Where"
            graph.replace_input(node, 2, nothing)

    return change


def spare_rows_seen(block: int) -> Change:
    """Rows of a budget past those kept count as kept."""

    def change(graph: Graph) -> None:
        graph.set_input(graph.node("Greater", f"block_{block}/select"), 1, -np.inf)

    return change


def ranked_by_position(block: int) -> Change:
    """A budget that is exceeded lets the first tokens through, not the best."""

    def change(graph: Graph) -> None:
        def equal(steps: Steps, margin: str) -> str:
            return steps.op(
                "Mul",
                steps.op("Sign", steps.op("Abs", margin)),
                steps.constant(1, onnx.TensorProto.FLOAT),
            )

        graph.replace_input(graph.node("Where", f"block_{block}/select"), 1, equal)

    return change


# --- what is told ------------------------------------------------------------------------------


def overflow(change: str, gate: int) -> Change:
    """Overflow never told, told as one at most, or one too few."""

    def put(graph: Graph) -> None:
        block = graph.config.gate_blocks[gate]
        node = graph.node("Max", f"block_{block}/select")

        def wrong(steps: Steps, beyond: str) -> str:
            if change == "never":
                return steps.op("Min", beyond, steps.constant(0))
            if change == "one at most":
                return steps.op("Min", beyond, steps.constant(1))
            return steps.op("Sub", beyond, steps.constant(1))

        graph.replace_input(node, 0, wrong)

    return put


def two_gates_exchanged(output: str) -> Change:
    """Two gates change places in an output."""

    def change(graph: Graph) -> None:
        count = graph.config.num_gates
        graph.replace(
            output,
            lambda s, v: s.op("Gather", v, s.constant([1, 0, *range(2, count)]), axis=1),
        )
        graph.stated = {"gate 0", "gate 1"}

    return change


def everything_told_as_kept(gate: int) -> Change:
    """`keep_mask` says of one gate that it keeps all."""

    def change(graph: Graph) -> None:
        rows = np.arange(graph.config.num_gates)[None, :, None] == gate
        graph.replace(
            names.KEEP_MASK,
            lambda s, mask: s.op("Or", mask, s.constant(rows, onnx.TensorProto.BOOL)),
        )
        graph.stated = {f"gate {gate}"}

    return change


FAULTS = (
    Fault("keys not hidden", keys_hidden_by(7, 0.0), (MASKED,)),
    Fault("keys hidden by 9", keys_hidden_by(5, -9.0), (BUDGET, ADAPTER)),
    Fault("rows of the neighbours", rows_shifted(5), (BUDGET,)),
    Fault("rows put back in reverse", rows_put_back_reversed(5), (SVIT, "digits/dynamic")),
    Fault("pruned rows empty", pruned_rows_empty(8), (MASKED, "svit_adapter/budget")),
    Fault("spare rows seen", spare_rows_seen(9), (BUDGET,)),
    Fault("a budget by position", ranked_by_position(4), (BUDGET, "svit_adapter/budget")),
    Fault("overflow never told", overflow("never", 1), (BUDGET,)),
    Fault("overflow of one at most", overflow("one at most", 3), (BUDGET, "svit_adapter/budget")),
    Fault("overflow one too few", overflow("one less", 0), ("svit_cls_empty_gate/budget",)),
    Fault(
        "two gates' masks exchanged",
        two_gates_exchanged(names.KEEP_MASK),
        (SVIT, "evit_fuse/static"),
    ),
    Fault("two gates' margins exchanged", two_gates_exchanged(names.MARGIN), ("evovit/static",)),
    Fault("all told as kept", everything_told_as_kept(2), (MASKED, "tome/static")),
)
