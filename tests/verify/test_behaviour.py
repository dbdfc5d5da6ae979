"""How a graph behaves: batches, repeats, everything and nothing kept, gates out of view."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

from svit_deploy.cli import main
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import EXIT_VERIFY, InputError
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.model.sizes import SizeRange
from svit_deploy.tasks.limits import LIMITS
from svit_deploy.verify.expected import StoredReference
from svit_deploy.verify.run import verify_against
from tests.shortened import backbone_of
from tests.verify.checks import SETTINGS, check, refused

pytestmark = pytest.mark.slow

PRUNING = ("dynamic", "budget", "masked")


def hard_code(model):
    """Gate 3 compares with a constant of its own: its threshold cannot be changed any more."""
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0), "zero"))
    for node in model.graph.node:
        if "gate_3.threshold" in node.input:
            node.input[1] = "zero"


@pytest.mark.slow
def test_a_threshold_that_nothing_reads(broken, verify, graph_fault):
    graph_fault(hard_code)
    bundle = broken()
    refused(verify(bundle), "all kept", "gate 3 decides")
    report = verify_against(bundle, StoredReference(bundle), SETTINGS)
    assert re.search("gate 3 keeps .* not 197", check(report, "all kept").detail)
    assert re.search("gate 3 keeps .* not 1$", check(report, "none kept").detail)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("svit_cls", "budget"), *(("svit_cls_empty_gate", mode) for mode in PRUNING)],
)
def test_all_kept_and_none_kept_are_held_against_the_rule_without_pytorch(export, name, mode):
    bundle = export(name, mode)
    report = verify_against(bundle, StoredReference(bundle), SETTINGS)
    assert check(report, "all kept").passed
    assert check(report, "none kept").passed
    assert report.passed, report.verdict


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


# --- a graph that some inputs break ------------------------------------------------------------


@pytest.fixture
def fails_for(monkeypatch):
    """Lets every graph fail on batches of a size."""
    run = OnnxRuntimeEngine.run

    def install(batch):
        def fails(self, feeds, outputs=None):
            if len(feeds.get("images", ())) == batch:
                raise InputError("the model failed while running")
            return run(self, feeds, outputs)

        monkeypatch.setattr(OnnxRuntimeEngine, "run", fails)

    return install


FAILED = "batch invariance: the model failed while running"


def test_a_graph_that_fails_on_some_inputs_is_refused(export, verify, fails_for):
    fails_for(1)
    report = verify(export("svit_cls", "dynamic"))
    assert report.verdict.startswith(f"FAIL bundle: {FAILED}")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classify", "detect"])
def test_it_differs_it_is_no_bad_input(detector, photo, export, tmp_path, capsys, fails_for, task):
    """The graph ran until here, so what ends is not the command."""
    if task == "detect":
        settings, sizes = (
            ExportSettings(task=task, calibration=photo),
            SizeRange.parse("96x128", 32),
        )
        bundle = export_model(detector, tmp_path / "bundle", settings, sizes=sizes)
    else:
        bundle = export("svit_cls", "dynamic")
    fails_for(1 if task == "classify" else 2)
    assert (
        main(["-q", "--no-progress", "verify", str(bundle.path), "--threads", "1"]) == EXIT_VERIFY
    )
    output = capsys.readouterr()
    assert FAILED in output.out + output.err


# --- gates out of view -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", PRUNING)
def test_a_file_without_gate_outputs(export, verify, monkeypatch, mode):
    """Its gates are brought into view; the file itself must compute the same."""
    bundle = export("svit_cls", mode, gate_outputs=False)
    report = verify(bundle)
    assert report.passed, report.verdict
    assert len(report.gates) == 9
    assert check(report, "alike without its gates in view").detail.startswith("logits within")
    assert check(report, "alike without its gates in view").detail.endswith("(in 3 images)")


@pytest.fixture
def other_kernels(monkeypatch):
    """Logits of a file without its gates in view are a hundredth off."""
    run = OnnxRuntimeEngine.run

    def shifted(self, feeds, outputs=None):
        results = run(self, feeds, outputs)
        if len(self.outputs()) == 1:
            results["logits"] = results["logits"] + np.float32(0.01)
        return results

    monkeypatch.setattr(OnnxRuntimeEngine, "run", shifted)


def test_a_file_that_computes_something_else_without_its_gates(export, verify, other_kernels):
    report = verify(export("svit_cls", "dynamic", gate_outputs=False))
    (failed,) = [check for check in report.checks if not check.passed]
    assert failed.name == "alike without its gates in view"
    assert failed.detail.startswith("logits differ by")
    assert failed.detail.endswith("(in 3 of 3 images, where rounding flips no decision)")


def test_it_is_refused_where_no_image_tells(export, verify, other_kernels, monkeypatch):
    """Every decision could flip by rounding, so nothing shows that the file is right."""
    monkeypatch.setitem(LIMITS, "fp32", replace(LIMITS["fp32"], rounding=1e9))
    report = verify(export("svit_cls", "dynamic", gate_outputs=False))
    (failed,) = [check for check in report.checks if not check.passed]
    assert failed.name == "alike without its gates in view"
    assert failed.detail.startswith("no image tells")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["backbone", "detect"])
def test_a_detector_without_gate_outputs(detector, photo, tmp_path, verify, task):
    model = detector if task == "detect" else backbone_of(detector)
    settings = ExportSettings(task=task, calibration=photo, gate_outputs=False)
    sizes = SizeRange.parse("64x64:96x128:96x128", 32)
    bundle = export_model(model, tmp_path / "bundle", settings, sizes=sizes)
    report = verify(bundle, model)
    assert report.passed, report.verdict
    assert len(report.gates) == 3
    assert check(report, "alike without its gates in view").passed
