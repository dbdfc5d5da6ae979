"""What a verification runs and reports; what it refuses is in test_faults.py."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

pytest.importorskip("torch")

from svit_deploy.compare import kept_counts
from svit_deploy.export.onnx import ExportSettings, export_model
from svit_deploy.export.vit import VitGraph
from svit_deploy.models.reference import Reference
from svit_deploy.verify.limits import LIMITS, Limits

from svit_deploy.bundle import PRECISIONS
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import InputError
from svit_deploy.export import onnx as onnx_export
from svit_deploy.graph.edit import FED, feed_values
from svit_deploy.model.config import TokenMode
from svit_deploy.progress import Progress
from svit_deploy.verify.expected import Recomputed, Recorded
from svit_deploy.verify.run import verify_bundle
from svit_deploy.verify.settings import VerifySettings
from svit_deploy.verify.report import Check, Stage

ROOT = Path(__file__).parent.parent
SETTINGS = VerifySettings(threads=1, repeats=2)
PRUNING = ("dynamic", "budget", "masked")


@pytest.fixture
def verify(golden):
    def verify_golden(bundle, name="svit_cls", images=None):
        return verify_bundle(bundle, Recomputed(bundle, golden(name).model, images), SETTINGS)

    return verify_golden


def check(report, name):
    (found,) = [check for check in report.checks if check.name == name]
    return found


# --- limits ------------------------------------------------------------------------------------


def test_the_limits_in_the_docs_are_those_in_the_code():
    text = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
    cell = r" ([\d.e-]+) \|"
    rows = re.findall(r"^\| `(\w+)` \|" + 3 * cell + "$", text, re.MULTILINE)
    table = rows[: len(fields(Limits))]  # the first of its kind
    assert [name for name, *_ in table] == [field.name for field in fields(Limits)]
    for column, precision in enumerate(PRECISIONS, 1):
        assert {row[0]: float(row[column]) for row in table} == asdict(LIMITS[precision])


def test_there_are_limits_for_every_precision():
    assert set(LIMITS) == set(PRECISIONS)


# --- what is run -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [*PRUNING, "dense"])
def test_checks(export, verify, mode):
    report = verify(export("svit_cls", mode))
    assert report.passed, report.verdict
    gates, budget = ["thresholds"], ["overflow counts what the budget cuts"]
    decisions = ["keep mask follows the margins", "gate decisions", "few decisions turn", "margins"]
    extremes = ["all kept", "none kept"]
    if mode == "dense":
        gates = decisions = extremes = []
    assert [found.name for found in report.checks] == [
        *("configuration", "inputs", "no random operator", *gates),
        *("every stage by itself", *decisions),
        *(budget if mode == "budget" else []),
        *("logits", "top-1 agreement", "alone = inside a batch", "deterministic"),
        *extremes,
    ]
    stages = [stage.name for stage in report.stages]
    gated = [f"gate {block - 3}" for block in range(12) if block > 2 and mode != "dense"]
    blocks = [f"block {block}" for block in range(12)]
    assert set(stages) == {"embedding", "head", *gated, *blocks}
    if gated:
        assert stages.index("gate 4") == stages.index("block 7") - 1


def test_without_feature_maps_gates_and_logits_are_compared(export):
    bundle = export("svit_cls", "dynamic")
    report = verify_bundle(bundle, Recorded(bundle), SETTINGS)
    assert report.passed
    assert [stage.name for stage in report.stages] == [*(f"gate {g}" for g in range(9)), "head"]
    assert "recorded at export (3 images)" in report.verdict


def test_the_recorded_reference_needs_no_pytorch(export):
    bundle = export("svit_cls", "dynamic")
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from svit_deploy.bundle import open_bundle\n"
        "from svit_deploy.verify import Recorded, verify_bundle\n"
        "bundle = open_bundle(Path(sys.argv[1]))\n"
        "print(verify_bundle(bundle, Recorded(bundle)).verdict)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(bundle.path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.stdout.startswith("PASS bundle: 3 images, decisions of 9 gates identical"), run


def test_what_the_export_chose_comes_from_the_bundle(golden, tmp_path, verify):
    """Image size and no gates here; thresholds in test_calibrate.py."""
    found = golden("svit_cls")
    model = replace(found.model, config=replace(found.model.config, image_size=(48, 64)))
    for mode in (TokenMode.DENSE, TokenMode.DYNAMIC):
        bundle = export_model(model, tmp_path / mode.value, ExportSettings(tokens=mode))
        report = verify(bundle)
        assert report.passed, report.verdict
        assert check(report, "configuration").detail == "as the reference's"


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_batches(golden, export, batch):
    bundle, found = export("svit_cls", "dynamic"), golden("svit_cls")
    seen = []

    class Watch(Progress):
        def update(self, description, fraction):
            seen.append((description, fraction))

    expectations = Recomputed(bundle, found.model, None, batch=batch)
    parts = list(expectations.parts())
    assert [len(part.inputs) for part in parts] == {1: [1, 1, 1], 2: [2, 1], 16: [3]}[batch]
    np.testing.assert_array_equal(np.concatenate([p.inputs for p in parts]), found.inputs)
    report = verify_bundle(bundle, expectations, SETTINGS, Watch())
    assert report.passed, report.verdict
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] <= fractions[-1] < 1
    skipped = "batch invariance needs two images, it was not checked"
    assert (skipped in report.notes) == (batch == 1)


def test_accuracy_is_told_where_labels_are(digits, heldout, tmp_path):
    bundle = export_model(digits, tmp_path / "bundle", ExportSettings(calibration=heldout[:4]))
    report = verify_bundle(bundle, Recomputed(bundle, digits, heldout), SETTINGS)
    assert report.passed, report.verdict
    assert report.images == 360
    outputs = Reference(digits).run(heldout.inputs(digits.config.preprocess, (48, 48)))
    accuracy = (outputs.logits.argmax(1) == heldout.labels).mean()
    assert report.accuracy == report.reference_accuracy == pytest.approx(accuracy)
    assert accuracy > 0.99


# --- behaviour ---------------------------------------------------------------------------------


def test_all_kept_and_none_kept_are_held_against_the_rule_without_pytorch(
    golden, export, monkeypatch, tmp_path
):
    for mode in PRUNING:
        bundle = export("svit_cls", mode)
        report = verify_bundle(bundle, Recorded(bundle), SETTINGS)
        assert check(report, "all kept").passed
        assert check(report, "none kept").passed
    # A gate that ignores its threshold is told.
    build = VitGraph.build

    def hard_code(self):
        model = build(self)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0), "zero"))
        for node in model.graph.node:
            if "gate_3.threshold" in node.input:
                node.input[1] = "zero"
        return model

    monkeypatch.setattr(VitGraph, "build", hard_code)
    found = golden("svit_cls")
    broken = export_model(
        found.model, tmp_path / "broken", ExportSettings(calibration=found.images)
    )
    report = verify_bundle(broken, Recorded(broken), SETTINGS)
    assert re.search("gate 3 keeps .* not 197", check(report, "all kept").detail)
    assert re.search("gate 3 keeps .* not 1$", check(report, "none kept").detail)


def test_a_changing_result_is_refused(export, verify, monkeypatch):
    run, calls = OnnxRuntimeEngine.run, []

    def unsteady(self, feeds, outputs=None):
        results = run(self, feeds, outputs)
        calls.append(1)
        results["logits"] = results["logits"] * np.float32(1 + 1e-7 * (len(calls) % 2))
        return results

    monkeypatch.setattr(OnnxRuntimeEngine, "run", unsteady)
    report = verify(export("svit_cls", "dynamic"))
    assert [found.name for found in report.checks if not found.passed] == ["deterministic"]
    assert check(report, "deterministic").detail == "logits changed"


def test_a_graph_that_fails_on_some_inputs_is_refused(export, verify, monkeypatch):
    run = OnnxRuntimeEngine.run

    def fails_alone(self, feeds, outputs=None):
        if len(feeds["images"]) == 1:
            raise InputError("the model failed while running")
        return run(self, feeds, outputs)

    monkeypatch.setattr(OnnxRuntimeEngine, "run", fails_alone)
    report = verify(export("svit_cls", "dynamic"))
    assert report.verdict.startswith(
        "FAIL bundle: batch invariance: the model failed while running"
    )


@pytest.mark.parametrize("mode", PRUNING)
def test_a_file_without_gate_outputs(golden, export, verify, monkeypatch, mode):
    """Its gates are brought into view; the file itself must compute the same."""
    bundle = export("svit_cls", mode, gate_outputs=False)
    report = verify(bundle)
    assert report.passed, report.verdict
    assert len(report.gates) == 9
    assert check(report, "alike without its gates in view").detail.startswith("logits of 3 images")

    run = OnnxRuntimeEngine.run

    def other_kernels(self, feeds, outputs=None):
        results = run(self, feeds, outputs)
        if len(self.outputs()) == 1:
            results["logits"] = results["logits"] + np.float32(0.01)
        return results

    monkeypatch.setattr(OnnxRuntimeEngine, "run", other_kernels)
    report = verify(bundle)
    assert [c.name for c in report.checks if not c.passed] == ["alike without its gates in view"]


# --- budgets and coin tosses -------------------------------------------------------------------


def test_what_a_budget_cuts_is_noted(golden, export, verify):
    found = golden("svit_cls")
    counts = kept_counts(found.keep_mask, found.model.config)
    report = verify(export("svit_cls", "budget", budget="100"))
    assert report.passed, report.verdict
    assert (counts[:, 0] > 100).all()
    (note,) = report.notes
    assert note.startswith("the budgets cut tokens in 3 of 3 images (gates 0, 1, 2")
    assert "reference was given the same budgets" in note
    assert verify(export("svit_cls", "budget", budget="auto")).notes == []


@pytest.mark.parametrize("budget", ["1", "100"])
def test_ties_at_the_cut_of_a_budget(golden, tmp_path, budget):
    """Equal tokens: which of them a budget keeps is decided by position, or by rounding."""
    found = golden("svit_cls")
    weights = dict(found.model.weights)
    weights["pos_embed"] = np.zeros_like(weights["pos_embed"])
    model = replace(found.model, weights=weights)
    flat = np.ones_like(found.inputs) * np.array([0.5, -1, 2], np.float32)[:, None, None, None]
    images = replace(found.images, arrays=flat)
    settings = ExportSettings(tokens=TokenMode.BUDGET, budget=budget, calibration=images)
    bundle = export_model(model, tmp_path / "bundle", settings)
    for expectations in (Recomputed(bundle, model, None), Recorded(bundle)):
        report = verify_bundle(bundle, expectations, SETTINGS)
        assert report.passed, report.verdict


def shifted_export(golden, tmp_path, monkeypatch, shift):
    """A graph whose first gate has margins moved up, by less than its limit, over a threshold
    that lies half as much above one of the reference's margins."""
    found = golden("svit_cls")
    margins = np.sort(found.margin[:, 0, 1:], axis=None)
    gaps = np.diff(margins)
    lone = margins[1:-1][np.minimum(gaps[1:], gaps[:-1]) > 1e-3][0]
    thresholds = (float(np.float32(lone + shift / 2)),) + (0.0,) * 8
    model = replace(found.model, config=replace(found.model.config, thresholds=thresholds))

    def written(model, *rest):
        weights = dict(model.weights)
        bias = weights["gates.0.mlp.fc2.bias"].copy()
        bias[0] += np.float32(shift)
        weights["gates.0.mlp.fc2.bias"] = bias
        return VitGraph(replace(model, weights=weights), *rest)

    monkeypatch.setattr(onnx_export, "VitGraph", written)
    bundle = export_model(model, tmp_path / "bundle", ExportSettings(calibration=found.images))
    return verify_bundle(bundle, Recomputed(bundle, model, None), SETTINGS)


def test_a_decision_within_rounding_is_a_coin_toss(golden, tmp_path, monkeypatch):
    report = shifted_export(golden, tmp_path, monkeypatch, 4e-5)
    assert report.passed, report.verdict
    first, *others = report.gates
    assert (first.flips.coin_tosses, first.flips.faults) == (1, 0)
    later = sum(gate.flips.consequences for gate in others)
    assert 0 < first.flips.largest_margin < 4e-5 < first.rounding
    words = "decisions of 9 gates identical but for 1 coin toss"
    assert words + (f" and {later} decisions after it" if later else "") in report.verdict
    assert "1 of 3 images turned a decision; their logits are those of the graph" in report.notes[0]
    assert check(report, "logits").passed


def test_a_decision_beyond_rounding_is_a_fault(golden, tmp_path, monkeypatch):
    report = shifted_export(golden, tmp_path, monkeypatch, 5e-3)
    assert not report.passed
    detail = check(report, "gate decisions").detail
    assert re.match("gate 0 decides . tokens? differently, margins up to 0.00", detail)


# --- models at the edges -----------------------------------------------------------------------


def with_weight(model, name, change):
    weights = dict(model.weights)
    weights[name] = change(weights[name].copy())
    return replace(model, weights=weights)


def test_one_class(golden, tmp_path):
    model = golden("svit_cls").model
    for name in ("head.weight", "head.bias"):
        model = with_weight(model, name, lambda array: array[:1])
    model = replace(model, config=replace(model.config, num_classes=1))
    settings = ExportSettings(calibration=golden("svit_cls").images)
    bundle = export_model(model, tmp_path / "bundle", settings)
    report = verify_bundle(bundle, Recomputed(bundle, model, None), SETTINGS)
    assert report.passed, report.verdict


def poison(array):
    array[..., 0] = np.nan
    return array


def test_a_reference_that_computes_nan_is_no_reference(golden, export):
    bundle = export("svit_cls", "dynamic")
    broken = with_weight(golden("svit_cls").model, "head.bias", poison)
    with pytest.raises(InputError, match="reference's own logits or margins are not finite"):
        verify_bundle(bundle, Recomputed(bundle, broken, None), SETTINGS)


@pytest.mark.parametrize(
    ("weight", "stage"),
    [
        ("blocks.5.norm1.bias", "block 5"),
        ("gates.2.mlp.fc2.bias", "gate 2"),
        ("head.bias", "head"),
    ],
)
def test_a_graph_that_computes_nan_is_refused(golden, tmp_path, monkeypatch, weight, stage):
    found = golden("svit_cls")
    monkeypatch.setattr(
        onnx_export,
        "VitGraph",
        lambda model, *rest: VitGraph(with_weight(model, weight, poison), *rest),
    )
    settings = ExportSettings(calibration=found.images)
    bundle = export_model(found.model, tmp_path / "bundle", settings)
    for expectations in (Recomputed(bundle, found.model, None), Recorded(bundle)):
        report = verify_bundle(bundle, expectations, SETTINGS)
        assert not report.passed
    report = verify_bundle(bundle, Recomputed(bundle, found.model, None), SETTINGS)
    assert f"{stage} is the first" in report.verdict
    assert "by NaN, infinity" in report.verdict
    if stage != "gate 2":  # there NaN only prunes
        assert check(report, "logits").detail == "NaN or infinity in 3 of 3 images"
    json.dumps(report.to_dict(), allow_nan=False)


# --- the report --------------------------------------------------------------------------------


def test_report_as_json(export, verify):
    report = verify(export("svit_cls", "dynamic"))
    content = json.loads(json.dumps(report.to_dict(["svit-deploy", "verify"]), allow_nan=False))
    assert content["status"] == {"verdict": "pass", "reasons": []}
    assert content["command"] == ["svit-deploy", "verify"]
    assert content["settings"]["limits"] == asdict(LIMITS["fp32"])
    assert content["settings"]["engine"]["threads"] == 1
    results = content["results"]
    assert len(results["stages"]) == 23
    assert results["logits_error"] < results["stages"][-1]["limit"]
    assert [gate["agreement"] for gate in results["gates"]] == [1.0] * 9
    assert all(gate["margin_drift"] < gate["rounding"] for gate in results["gates"])


def test_a_failed_report_as_json_and_on_a_terminal(export, verify):
    report = verify(export("svit_cls", "dynamic"))
    report.stages.append(Stage("head", np.inf, 1e-5))
    report.checks.append(Check("no random operator", False, "the graph samples in [bold]x[/] [/]"))
    content = report.to_dict()
    json.dumps(content, allow_nan=False)
    assert content["results"]["stages"][-1]["error"] is None
    assert content["status"]["verdict"] == "fail"
    assert content["status"]["reasons"] == [
        "no random operator: the graph samples in [bold]x[/] [/]"
    ]
    output = io.StringIO()
    report.render(Console(file=output, width=160))
    text = output.getvalue()
    assert "the graph samples in [bold]x[/] [/]" in text
    assert text.splitlines()[-1].startswith("FAIL bundle: no random operator")
    for gate in report.gates:
        assert re.search(rf"{gate.gate} +{gate.block} +100.0000% +0 +0 +{gate.keep:.3f}", text)


# --- running parts of a graph ------------------------------------------------------------------


def test_a_fed_value_cuts_the_graph(golden, export):
    found = golden("svit_cls")
    model = export("svit_cls", "masked").load_model()
    expected = Reference(found.model).run(found.inputs, features=True).features
    fed = feed_values(model, {"block_1.out": ("rows", 48)})
    other = expected[2][::-1].reshape(-1, 48)
    with OnnxRuntimeEngine(fed.SerializeToString(), threads=1) as engine:
        feeds = {"images": found.inputs, f"block_1.out{FED}": np.ascontiguousarray(other)}
        outputs = engine.run(feeds)
    np.testing.assert_allclose(
        outputs["block_1.out"].reshape(3, 197, 48), expected[2], rtol=0, atol=1e-4
    )
    np.testing.assert_array_equal(outputs["keep_mask"], found.keep_mask[::-1])
    with pytest.raises(InputError, match="no value named 'block_99"):
        feed_values(model, {"block_99.out": ("rows", 48)})
