"""Faults in gates: margins, and the decisions that are made of them."""

from __future__ import annotations

import numpy as np
import onnx

from mutation.fault import Change, Fault, generator
from mutation.faults_of_blocks import epsilon, tanh_gelu
from mutation.graph import Graph, Steps
from svit_deploy import names

FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


# --- margins -----------------------------------------------------------------------------------


def margin_shifted(gate: int, shift: float) -> Change:
    return lambda g: g.change_weight(f"gates.{gate}.margin.bias", lambda bias: bias + shift)


def margin_turned(gate: int) -> Change:
    """Prune logit minus keep logit."""
    return lambda g: g.replace(names.margin_name(gate), lambda s, margin: s.op("Neg", margin))


def frozen_noise(gate: int, size: float) -> Change:
    """The noise of one training step, kept as a constant."""

    def change(graph: Graph) -> None:
        noise = size * generator().gumbel(size=(1, graph.config.num_tokens))
        name = names.margin_name(gate)
        graph.replace(name, lambda s, m: s.op("Add", m, s.constant(noise, FLOAT)))

    return change


def sampled(gate: int) -> Change:
    """Noise that is new in each run."""

    def change(graph: Graph) -> None:
        def noisy(steps: Steps, margin: str) -> str:
            return steps.op("Add", margin, steps.op("RandomNormalLike", margin, scale=1e-3))

        graph.replace(names.margin_name(gate), noisy)

    return change


def gate_in_half(block: int) -> Change:
    """What a gate's first linear layer reads has eleven bits."""

    def change(graph: Graph) -> None:
        def rounded(steps: Steps, value: str) -> str:
            return steps.op("Cast", steps.op("Cast", value, to=FLOAT16), to=FLOAT)

        graph.replace_input(graph.node("Gemm", f"block_{block}/gate"), 0, rounded)

    return change


# --- decisions ---------------------------------------------------------------------------------


def threshold_shifted(gate: int, shift: float) -> Change:
    def change(graph: Graph) -> None:
        graph.change_weight(names.threshold_name(gate), lambda threshold: threshold + shift)

    return change


def threshold_named_but_not_read(gate: int, shift: float) -> Change:
    """The initializer is right, and something is added behind it."""

    def change(graph: Graph) -> None:
        node = graph.producer(names.decision_name(gate))
        graph.replace_input(node, 1, lambda s, t: s.op("Add", t, s.constant(shift, FLOAT)))

    return change


def compared_by(gate: int, op: str) -> Change:
    def change(graph: Graph) -> None:
        node = graph.producer(names.decision_name(gate))
        node.op_type = op
        graph.touch(node)

    return change


def class_token_decided(gate: int, margin: float | None) -> Change:
    """A gate that must keep the class token prunes it always, or (None) by its margin."""

    def change(graph: Graph) -> None:
        node = graph.producer(names.margin_name(gate))
        assert node.op_type == "Where"
        if margin is None:
            graph.change_input(node, 0, np.zeros_like)
        else:
            graph.set_input(node, 1, margin)

    return change


def decisions_of_the_gate_before(gate: int) -> Change:
    """A block computes the tokens that the gate before its own kept."""

    def change(graph: Graph) -> None:
        scope = f"block_{graph.config.gate_blocks[gate]}/"
        own, other = names.decision_name(gate), names.decision_name(gate - 1)
        for node in graph.nodes:
            for position, name in enumerate(node.input):
                if name == own and node.name.startswith(scope):
                    graph.rewire(node, position, other)

    return change


def decisions_of_the_first_image(gate: int) -> Change:
    def change(graph: Graph) -> None:
        def first(steps: Steps, decision: str) -> str:
            one = steps.op("Gather", decision, steps.constant([0]), axis=0)
            return steps.op("Expand", one, steps.op("Shape", decision))

        graph.replace(names.decision_name(gate), first)

    return change


def counted_from_the_wrong_end(gate: int) -> Change:
    """Of a method that counts: the tokens of the lowest margins."""

    def change(graph: Graph) -> None:
        graph.set_attribute(graph.producer(names.decision_name(gate)), "largest", 0)

    return change


def last_kept_for_the_first_pruned(gate: int) -> Change:
    """Of a method that counts: the best token is left out, the best pruned one taken."""

    def change(graph: Graph) -> None:
        node = graph.producer(names.decision_name(gate))
        outputs = list(node.output)

        def later(steps: Steps, count: str) -> str:
            return steps.op("Add", count, steps.constant([1]))

        graph.replace_input(node, 1, later)
        starts = {outputs[0]: outputs[0], outputs[1]: outputs[1]}
        for name in starts:
            if any(name in other.input for other in graph.nodes):
                graph.replace(
                    name,
                    lambda s, v: s.op(
                        "Slice", v, s.constant([1]), s.constant([2**62]), s.constant([1])
                    ),
                )

    return change


SVIT, BUDGET, MASKED, ADAPTER = (
    "svit_cls/dynamic",
    "svit_cls/budget",
    "svit_cls/masked",
    "svit_adapter/dynamic",
)
FAULTS = (
    Fault("epsilon of a gate's norm", epsilon("block_5/gate", 0.1), (SVIT, ADAPTER)),
    Fault("epsilon of a predictor's norm", epsilon("block_6/gate", 10), ("dynamicvit/static",)),
    Fault("GELU by tanh in a gate", tanh_gelu("block_9/gate"), (BUDGET, "dynamicvit/static")),
    Fault("a gate's input in half", gate_in_half(4), (SVIT, "digits/dynamic")),
    Fault("a margin up by 1e-3", margin_shifted(3, 1e-3), (BUDGET, "digits/dynamic", ADAPTER)),
    Fault("a margin up by 1e-4", margin_shifted(2, 1e-4), (SVIT, "svit_cls/hidden")),
    Fault("keep and prune exchanged", margin_turned(1), (MASKED, "dynamicvit_lvvit/static")),
    Fault("noise of training kept", frozen_noise(1, 0.01), (SVIT, "digits/dynamic")),
    Fault("margins sampled", sampled(5), (SVIT, "ats/dynamic")),
    Fault("a threshold up by 0.01", threshold_shifted(4, 0.01), (MASKED, "svit_adapter/budget")),
    Fault("added behind a threshold", threshold_named_but_not_read(2, 0.01), (BUDGET,)),
    Fault(
        "a tie is kept", compared_by(3, "GreaterOrEqual"), (SVIT, BUDGET, ADAPTER, "ats/dynamic")
    ),
    Fault("kept below the threshold", compared_by(6, "Less"), (MASKED,)),
    Fault(
        "class token decided", class_token_decided(2, None), (SVIT, "svit_cls_empty_gate/budget")
    ),
    Fault("class token pruned", class_token_decided(5, -np.inf), (SVIT, "svit_cls/hidden")),
    Fault("tokens of the gate before", decisions_of_the_gate_before(4), (SVIT, ADAPTER)),
    Fault("the first image's decisions", decisions_of_the_first_image(1), (SVIT, "evovit/static")),
    Fault(
        "the worst tokens kept",
        counted_from_the_wrong_end(1),
        ("dynamicvit/static", "evovit/static"),
    ),
    Fault(
        "the best token left out",
        last_kept_for_the_first_pruned(1),
        ("evit_nofuse/static", "dynamicvit/static"),
    ),
)
