"""What verify says of quantised graphs: correct ones pass, a wrong number in one layer is named."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("torch")

from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.images import load_images
from svit_deploy.model.config import TokenMode
from svit_deploy.tasks import TASKS
from svit_deploy.tasks.limits import LIMITS
from svit_deploy.verify.expected import LiveReference, StoredReference
from svit_deploy.verify.run import verify_against
from tests.conftest import DIGITS
from tests.contract.test_families import CASES, noise, small_model
from tests.verify.checks import SETTINGS
from tests.verify.test_faults import tanh_gelu
from tests.verify.test_half_precision import changed, one_row

pytestmark = pytest.mark.slow
EXACT = "every stage by itself, in float32"
STEPS = "quantised layers"
LAYER = "blocks.5.mlp.fc1"


QUANTISED = [case for case in CASES if "int8" in TASKS[case[1]].limits]
ONE_OF_EACH = {
    ("svit", TokenMode.DYNAMIC),
    ("svit", TokenMode.BUDGET),
    ("mergence", TokenMode.STATIC),
    ("lvvit", TokenMode.DENSE),
    ("swin", TokenMode.DENSE),
    ("svit_adapter", TokenMode.DYNAMIC),
}
"""A family of each way to make layers: enough for fp8, and for what was recorded of an export."""


@pytest.mark.parametrize(
    ("family", "task", "mode", "precision"),
    [
        *((*case, "int8") for case in QUANTISED),
        *((*case, "fp8") for case in QUANTISED if (case[0], case[2]) in ONE_OF_EACH),
    ],
)
def test_every_family_in_each_of_its_modes(tmp_path, family, task, mode, precision):
    many, model = TASKS[task].many_sizes, small_model(family, task)
    size = (64, 96) if many else model.config.image_size
    budget = "0.6" if mode is TokenMode.BUDGET else None
    settings = ExportSettings(
        task=task,
        tokens=mode,
        budget=budget,
        precision=precision,
        calibration=noise(size, model.config.frames),
    )
    sizes = TASKS[task].parse_sizes("64x64:64x96:128x128") if many else None
    bundle = export_model(model, tmp_path / "out", settings, sizes=sizes)
    report = verify_against(bundle, LiveReference(bundle, model), SETTINGS)
    assert report.passed, report.verdict
    if (family, mode) in ONE_OF_EACH:
        recorded = verify_against(bundle, StoredReference(bundle), SETTINGS)
        assert recorded.passed, recorded.verdict
    assert max(stage.error for stage in report.stages_in_float32) < 1e-5, "computes in float32"
    blocks = [stage.limit for stage in report.stages if stage.name.startswith("block")]
    assert max(blocks) > 5 * LIMITS["fp32"].block, "rounding moves nothing"


def edited(name, change):
    """A graph with one initializer changed; float32 graphs have none of that name."""

    def fault(model):
        for tensor in model.graph.initializer:
            if tensor.name == name:
                array = change(numpy_helper.to_array(tensor).copy())
                tensor.CopyFrom(numpy_helper.from_array(array, name))

    return fault


def negated(rows):
    rows[3] = -rows[3]
    return rows


def one_step(steps):
    steps[3] *= 2
    return steps


def multiplied_with_twice_the_step(model):
    """What divides is right, what multiplies is not."""
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[1] == f"{LAYER}.step":
            twice = numpy_helper.from_array(np.float32(0.1), "twice")
            model.graph.initializer.append(twice)
            node.input[1] = "twice"


def rounded_before(name):
    """A float32 product is given what a layer of integers would be."""

    def fault(model):
        nodes = model.graph.node
        at, node = next((i, node) for i, node in enumerate(nodes) if node.input[1:2] == [name])
        step = numpy_helper.from_array(np.float32(0.05), "stray.step")
        zero = numpy_helper.from_array(np.int8(0), "stray.zero")
        model.graph.initializer.extend([step, zero])
        there, back = ["stray.step", "stray.zero"], ["stray"]
        nodes.insert(at, helper.make_node("QuantizeLinear", [node.input[0], *there], back))
        nodes.insert(at + 1, helper.make_node("DequantizeLinear", [*back, *there], ["stray.back"]))
        node.input[0] = "stray.back"

    return fault


def zero_aside(model):
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if f"{LAYER}.step" in node.input:
            name = node.input[2]
            tensors[name].CopyFrom(numpy_helper.from_array(np.int8(3), name))


def in_int8(model):
    """The inputs of one layer are rounded to multiples of the step."""
    for node in model.graph.node:
        if f"{LAYER}.step" in node.input:
            node.input[2] = "zero.int8"
    model.graph.initializer.append(numpy_helper.from_array(np.int8(0), "zero.int8"))


FAULTS = {
    "inputs moved by three steps": (zero_aside, STEPS),
    "a gate that is given rounded rows": (rounded_before("gates.0.mlp.fc1.weight"), STEPS),
    "twice the step of the inputs": (edited(f"{LAYER}.step", lambda step: step * 2), STEPS),
    "divided by one step, multiplied with another": (multiplied_with_twice_the_step, STEPS),
    "a row of weights negated": (edited(f"{LAYER}.weight", negated), EXACT),
    "a row with twice its step": (edited(f"{LAYER}.weight.step", one_step), EXACT),
    "GELU by tanh": (tanh_gelu("block_5/mlp/"), EXACT),
}
FP8_FAULTS = {
    "inputs in int8": (in_int8, STEPS),
    "a row of weights negated": FAULTS["a row of weights negated"],
}


@pytest.mark.usefixtures("parity_only")
@pytest.mark.parametrize(
    ("precision", "fault"),
    [*(("int8", fault) for fault in FAULTS), *(("fp8", fault) for fault in FP8_FAULTS)],
)
def test_a_fault_in_the_graph_is_refused(digits, heldout, broken, graph_fault, precision, fault):
    change, where = (FAULTS if precision == "int8" else FP8_FAULTS)[fault]
    graph_fault(change)
    bundle = broken(model=digits, precision=precision, calibration=heldout[:8])
    report = verify_against(bundle, LiveReference(bundle, digits), SETTINGS)
    first = "block_2/gate/Gemm" if "gate" in fault else LAYER
    named = first if where == STEPS else "block 5 is the first"
    assert report.verdict.startswith(f"FAIL broken: {where}: {named}"), report.verdict
    wrong = [stage for stage in report.stages_in_float32 if stage.error > stage.limit]
    assert not wrong or wrong[0].error > 5 * wrong[0].limit, "it is told by luck"


@pytest.mark.usefixtures("parity_only")
def test_a_wrong_weight_is_refused(digits, heldout, broken, model_fault):
    model_fault(changed(f"{LAYER}.weight", one_row))
    bundle = broken(model=digits, precision="int8", calibration=heldout[:8])
    live = verify_against(bundle, LiveReference(bundle, digits), SETTINGS)
    assert live.verdict.startswith(f"FAIL broken: {EXACT}: block 5 is the first"), live.verdict
    stored = verify_against(bundle, StoredReference(bundle), SETTINGS)
    assert not stored.passed, stored.verdict


@pytest.mark.parametrize(
    ("precision", "mode"),
    [*(("int8", mode) for mode in ("dynamic", "budget", "masked", "dense")), ("fp8", "dynamic")],
)
def test_the_trained_model_loses_at_most_a_third_of_a_percent(
    tmp_path, digits, heldout, precision, mode
):
    calibration = load_images(DIGITS / "calibration.npz")
    budget = "0.8" if mode == "budget" else None
    settings = ExportSettings(
        tokens=TokenMode(mode), precision=precision, budget=budget, calibration=calibration
    )
    bundle = export_model(digits, tmp_path / "out", settings)
    report = verify_against(bundle, LiveReference(bundle, digits, heldout), SETTINGS)
    assert report.passed, report.verdict
    accuracy = report.results["top1_accuracy"], report.results["reference_top1_accuracy"]
    assert accuracy[0] >= accuracy[1] - 0.003, accuracy
    flipped = sum(gate.flips.flips for gate in report.gates)
    assert flipped <= 0.003 * max(1, sum(gate.flips.tokens for gate in report.gates))
