"""What few images alone do not show: large batches, and budgets that are exceeded."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("torch")

from tests.verify.checks import check, refused

pytestmark = pytest.mark.slow


def rewrite(model: onnx.ModelProto, output: str, nodes: list[onnx.NodeProto]) -> None:
    """Renames an output's value to `there`, and appends nodes that make the output of it."""
    for node in model.graph.node:
        node.output[:] = ["there" if name == output else name for name in node.output]
        node.input[:] = ["there" if name == output else name for name in node.input]
    model.graph.node.extend(nodes)


def shift_from_image_16(model: onnx.ModelProto) -> None:
    numbers = {"zero": 0, "one": 1, "sixteen": 16}
    tensors = [numpy_helper.from_array(np.int64(v), f"late.{n}") for n, v in numbers.items()]
    tensors.append(numpy_helper.from_array(np.array([1]), "late.axes"))
    model.graph.initializer.extend(tensors)
    steps = [
        ("Shape", ["there"], "late.shape", {"end": 1}),
        ("Squeeze", ["late.shape"], "late.count", {}),
        ("Range", ["late.zero", "late.count", "late.one"], "late.number", {}),
        ("GreaterOrEqual", ["late.number", "late.sixteen"], "late.is_late", {}),
        ("Cast", ["late.is_late"], "late.shift", {"to": onnx.TensorProto.FLOAT}),
        ("Unsqueeze", ["late.shift", "late.axes"], "late.column", {}),
        ("Add", ["there", "late.column"], "logits", {}),
    ]
    nodes = [helper.make_node(op, inputs, [out], **more) for op, inputs, out, more in steps]
    rewrite(model, "logits", nodes)


def never_count_overflow(model: onnx.ModelProto) -> None:
    node = helper.make_node("Sub", ["there", "there"], ["overflow"])
    rewrite(model, "overflow", [node])


def test_values_wrong_from_image_16_on(broken, verify, graph_fault):
    graph_fault(shift_from_image_16)
    report = verify(broken())
    refused(report, "alone = inside a large batch", "batch 17: logits differ by")
    assert report.verdict.endswith("; head is the first to differ")


def test_overflow_wrong_where_the_budget_is_exceeded(broken, verify, graph_fault):
    graph_fault(never_count_overflow)
    report = verify(broken(mode="budget", budget="0.9"))
    assert check(report, "overflow counts what the budget cuts").passed
    refused(report, "overflow with all kept", "gate 0 miscounts")


def test_overflow_is_right_where_all_are_kept(broken, verify):
    report = verify(broken(mode="budget", budget="0.5"))
    assert check(report, "overflow with all kept").detail == "98 tokens"
    assert report.passed, report.verdict


def rename_the_logits(model: onnx.ModelProto) -> None:
    rewrite(model, "logits", [])
    next(output for output in model.graph.output if output.name == "logits").name = "there"


def test_a_renamed_output_is_refused(broken, verify, graph_fault):
    graph_fault(rename_the_logits)
    refused(verify(broken()), "outputs", "no logits")
