"""Bundles of another model than the checkpoint are refused; unbroken ones are accepted."""

from __future__ import annotations

import onnx
import pytest

pytest.importorskip("torch")

from svit_deploy.images.sets import synthetic_images
from svit_deploy.model.config import Preprocess
from svit_deploy.verify.expected import StoredReference
from svit_deploy.verify.run import verify_against
from tests.verify.checks import SETTINGS, first_stage, refused, with_config

PRUNING = ("dynamic", "budget", "masked")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("parity_only")]


# --- preprocessing -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, "mean is [0.5, 0.5, 0.5] in the bundle, [0.485, 0.456, 0.406]"),
        ({"crop_ratio": 1.0}, "crop_ratio is 1.0 in the bundle, 0.875 in the checkpoint's"),
        ({"interpolation": "bilinear"}, "interpolation is bilinear in the bundle, bicubic in"),
    ],
)
def test_preprocessing_of_another_model(golden, broken, verify, changed, words):
    wrong = with_config(preprocess=Preprocess(**changed))(golden("svit_cls").model)
    bundle = broken(model=wrong)
    for images in (synthetic_images(3, (64, 80)), None):
        refused(verify(bundle, images=images), "inputs", words)


def test_a_graph_that_tells_another_preprocessing_of_itself(broken, verify):
    """Programs that are given the file alone read it there."""
    bundle = broken()
    model = bundle.load_model()
    (told,) = [p for p in model.metadata_props if p.key.endswith(".preprocess")]
    told.value = told.value.replace("0.485", "0.5")
    onnx.save(model, bundle.model_path)
    report = verify(bundle)
    refused(report, "metadata", "the graph's own preprocess is not the manifest's")
    del model.metadata_props[:]
    onnx.save(model, bundle.model_path)
    assert verify(bundle).passed


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num_heads": 3}, "num_heads is 3 in the bundle, 6 in the checkpoint's"),
        ({"gate_class_token": (False,) * 9}, "gate_class_token is [False, False"),
        ({"block_eps": 1e-6}, "block_eps is 1e-06 in the bundle"),
    ],
)
def test_settings_of_another_model(golden, broken, verify, changed, words):
    """As a wrong --set gives at the export, with a manifest that tells it."""
    wrong = with_config(**changed)(golden("svit_cls").model)
    refused(verify(broken(model=wrong)), "configuration", words)


def test_checkpoint_of_another_training(broken, verify):
    report = verify(broken(), "svit_cls_empty_gate")
    refused(report, *first_stage("gate 8"))
    assert "the bundle was exported from another file, checkpoint.pth" in report.notes


# --- controls ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, mode) for name in ("svit_cls", "svit_cls_empty_gate") for mode in PRUNING),
        ("svit_cls_224", "dynamic"),
        ("svit_cls", "dense"),
        ("deit", "dense"),
        ("deit_distilled", "dense"),
    ],
)
def test_an_unbroken_export_is_accepted(export, verify, name, mode):
    report = verify(export(name, mode), name)
    assert report.passed, report.verdict
    assert all(not gate.flips.flips for gate in report.gates)
    # Nor is rounding: see docs/verify.md.
    assert all(stage.error < stage.limit / 5 for stage in report.stages)
    assert all(gate.drift < gate.rounding / 5 for gate in report.gates)
    assert report.results["logits_error"] < report.limits.logits / 5


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"block_eps": 1e-6}, "gates and logits: gate 0 is the first of 10"),
        ({"gate_eps": 1e-6}, "gates and logits: gate 0 is the first of 9"),
        ({"norm_eps": 1e-5}, "gates and logits: head is the first"),
        ({"gate_class_token": (False,) * 9}, "gates and logits: gate 8 is the first"),
        ({"thresholds": (0.01,) * 9}, "thresholds: gate 0 has 0.01, not 0, gate 1"),
    ],
)
def test_faults_are_seen_without_pytorch_too(broken, model_fault, change, verdict):
    model_fault(with_config(**change))
    bundle = broken()
    report = verify_against(bundle, StoredReference(bundle), SETTINGS)
    assert report.verdict.startswith(f"FAIL broken: {verdict}"), report.verdict
