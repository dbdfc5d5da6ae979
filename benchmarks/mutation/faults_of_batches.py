"""Faults that some batches alone show, and faults beside the graph: manifest, outputs."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import onnx

from mutation.fault import Change, Fault
from mutation.graph import Graph, Steps
from svit_deploy import names
from svit_deploy.io.onnx_file import METADATA_PREFIX

FLOAT = onnx.TensorProto.FLOAT


def from_image(value: str, first: int, share: float, rows_per_image: bool = False) -> Change:
    """A value that is larger by a share from one image of a batch on.

    Args:
        rows_per_image: the value is `[B * rows, C]`, not `[B, ...]`.
    """

    def change(graph: Graph) -> None:
        def wrong(steps: Steps, right: str) -> str:
            late = steps.op("GreaterOrEqual", steps.image_numbers(), steps.constant(first))
            late = steps.op("Cast", late, to=FLOAT)
            if rows_per_image:  # [B] -> [B, rows] -> [B * rows, 1]
                shape = steps.op("Shape", right, end=1)
                rows = steps.op("Div", shape, steps.op("Shape", names.INPUT, end=1))
                both = steps.op("Concat", steps.constant([1]), rows, axis=0)
                late = steps.op("Expand", steps.op("Unsqueeze", late, steps.constant([1])), both)
                late = steps.op("Reshape", late, steps.constant([-1]))
            late = steps.op("Unsqueeze", late, steps.constant([1]))
            late = steps.op("Mul", late, steps.constant(share, FLOAT))
            factor = steps.op("Add", late, steps.constant(1, FLOAT))
            return steps.op("Mul", right, steps.cast(factor, value))

        graph.replace(value, wrong)

    return change


def in_batches_of(value: str, least: int, factor: float) -> Change:
    """A value that is off in all images of a large batch."""

    def change(graph: Graph) -> None:
        def wrong(steps: Steps, right: str) -> str:
            count = steps.op("Squeeze", steps.op("Shape", names.INPUT, end=1))
            large = steps.op("GreaterOrEqual", count, steps.constant(least))
            one, other = steps.number(1.0, value), steps.number(factor, value)
            return steps.op("Mul", right, steps.op("Where", large, other, one))

        graph.replace(value, wrong)

    return change


def neighbours_leak(graph: Graph) -> None:
    """A thousandth of the mean of the batch is in every image's logits."""

    def leaked(steps: Steps, logits: str) -> str:
        mean = steps.op("ReduceMean", logits, steps.constant([0]), keepdims=1)
        thousandth = steps.op("Mul", mean, steps.constant(1e-3, FLOAT))
        return steps.op(
            "Add",
            logits,
            steps.op("Sub", thousandth, steps.op("Mul", logits, steps.constant(1e-3, FLOAT))),
        )

    graph.replace(names.LOGITS, leaked)


def manifest(check: str, **changes: Any) -> Change:
    """The manifest tells something else of the model; the graph is as it was."""

    def change(graph: Graph) -> None:
        told = deepcopy(graph.manifest)
        for path, value in changes.items():
            *parents, name = path.split("__")
            entry = told
            for parent in parents:
                entry = entry[parent]
            entry[name] = value
        graph.manifest = told
        graph.stated, graph.told_only = {check}, True

    return change


def properties(name: str, right: str, wrong: str) -> Change:
    """The graph's own metadata tells something else."""

    def change(graph: Graph) -> None:
        for entry in graph.model.metadata_props:
            if entry.key == METADATA_PREFIX + name:
                assert right in entry.value
                entry.value = entry.value.replace(right, wrong, 1)
        graph.stated, graph.told_only = {"metadata"}, True

    return change


def threshold_told(graph: Graph) -> None:
    """The manifest's record of a gate, which other programs read, names another threshold."""
    told = deepcopy(graph.manifest)
    told["gates"][2]["threshold"] += 0.5
    graph.manifest, graph.stated = told, {"manifest", "gate 2"}
    graph.told_only = True


def output_renamed(graph: Graph) -> None:
    node = graph.producer(names.LOGITS)
    shown = next(output for output in graph.model.graph.output if output.name == names.LOGITS)
    node.output[0] = shown.name = "scores_of_classes"
    graph.stated, graph.told_only = {"outputs"}, True


SVIT, BUDGET, DEIT = "svit_cls/dynamic", "svit_cls/budget", "deit/dense"
FAULTS = (
    Fault("logits off from image 16 on", from_image(names.LOGITS, 16, 0.5), (SVIT, DEIT)),
    Fault(
        "a block off from image 20 on",
        from_image(names.block_name(5), 20, 0.5, rows_per_image=True),
        (DEIT, "dynamicvit/static"),
    ),
    Fault(
        "a block off from image 4 on",
        from_image(names.block_name(4), 4, 0.5, rows_per_image=True),
        ("lvvit/dense", "svit_adapter/dynamic"),
    ),
    Fault(
        "a margin off from image 24 on",
        from_image(names.margin_name(2), 24, 0.5),
        (BUDGET, "digits/dynamic"),
    ),
    Fault(
        "logits off in batches of 30",
        in_batches_of(names.LOGITS, 30, 1.1),
        (DEIT, "svit_cls/hidden"),
    ),
    Fault("logits off in batches of 17", in_batches_of(names.LOGITS, 17, 1.1), ("evovit/static",)),
    Fault("neighbours leak", neighbours_leak, (DEIT, "tome/static")),
    Fault(
        "another mean",
        manifest("inputs", preprocess__mean=[0.5] * 3, model__preprocess__mean=[0.5] * 3),
        (DEIT,),
    ),
    Fault(
        "another crop",
        manifest("inputs", preprocess__crop_ratio=1.0, model__preprocess__crop_ratio=1.0),
        (SVIT,),
    ),
    Fault("another mean told to others", manifest("manifest", preprocess__mean=[0.5] * 3), (DEIT,)),
    Fault("another threshold told to others", threshold_told, (SVIT,)),
    Fault("another mean in the file", properties("preprocess", "0.485", "0.5"), (DEIT,)),
    Fault("an output renamed", output_renamed, (DEIT, BUDGET)),
)
