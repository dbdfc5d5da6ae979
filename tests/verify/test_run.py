"""What a verification runs; what it refuses is in test_faults.py and its neighbours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy.errors import InputError
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.images.prepared import stacked
from svit_deploy.images.sets import synthetic_images
from svit_deploy.model.config import TokenMode
from svit_deploy.model.sizes import SizeRange
from svit_deploy.progress import Progress
from svit_deploy.verify.expected import LiveReference, StoredReference
from svit_deploy.verify.run import verify_against
from tests.export.running import reference
from tests.shortened import backbone_of
from tests.verify.checks import SETTINGS, check

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mode", ["dynamic", "budget", "masked", "dense"])
def test_checks(export, verify, mode):
    report = verify(export("svit_cls", mode))
    assert report.passed, report.verdict
    gates, budget = ["thresholds"], ["overflow counts what the budget cuts"]
    batches = ["alone = inside a batch", "alone = inside a large batch"]
    decisions = ["keep mask follows the margins", "gate decisions", "few decisions flip", "margins"]
    extremes = ["all kept", "none kept", "ties are pruned"]
    if mode == "budget":
        extremes.insert(1, "overflow with all kept")
    if mode == "dense":
        gates = decisions = extremes = []
    assert [found.name for found in report.checks] == [
        *("configuration", "inputs", "outputs", "metadata", "no random operator", *gates),
        *("every stage by itself", *decisions),
        *(budget if mode == "budget" else []),
        *("logits", "top-1 agreement", *batches, "deterministic"),
        *extremes,
    ]
    stages = [stage.name for stage in report.stages]
    gated = [f"gate {block - 3}" for block in range(12) if block > 2 and mode != "dense"]
    blocks = [f"block {block}" for block in range(12)]
    assert set(stages) == {"embedding", "head", *gated, *blocks}
    if gated:
        assert stages.index("gate 4") == stages.index("block 7") - 1


def test_without_stages_gates_and_logits_are_compared(export):
    bundle = export("svit_cls", "dynamic")
    report = verify_against(bundle, StoredReference(bundle), SETTINGS)
    assert report.passed
    assert [stage.name for stage in report.stages] == [*(f"gate {g}" for g in range(9)), "head"]
    assert "recorded at export (3 images)" in report.verdict


@pytest.mark.slow
def test_the_recorded_reference_needs_no_pytorch(export):
    bundle = export("svit_cls", "dynamic")
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from svit_deploy.bundle.bundle import open_bundle\n"
        "from svit_deploy.verify.run import verify_bundle\n"
        "print(verify_bundle(open_bundle(Path(sys.argv[1]))).verdict)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(bundle.path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.stdout.startswith("PASS bundle: 3 images, decisions of 9 gates identical"), run


@pytest.mark.parametrize("mode", [TokenMode.DENSE, TokenMode.DYNAMIC])
def test_what_the_export_chose_comes_from_the_bundle(golden, tmp_path, verify, mode):
    """Image size and no gates here; thresholds in tests/export/test_calibration.py."""
    found = golden("svit_cls")
    model = replace(found.model, config=found.model.config.at((48, 64)))
    settings = ExportSettings(tokens=mode, calibration=synthetic_images(2, (48, 64)))
    report = verify(export_model(model, tmp_path / "bundle", settings))
    assert report.passed, report.verdict
    assert check(report, "configuration").detail == "as the reference's"


@pytest.mark.parametrize("together", [1, 2, 16])
def test_parts(golden, export, together):
    bundle, found = export("svit_cls", "dynamic"), golden("svit_cls")
    seen = []

    class Watch(Progress):
        def update(self, description, fraction):
            seen.append((description, fraction))

    expected = LiveReference(bundle, found.model, together=together)
    parts = list(expected.parts())
    assert [len(part) for part in parts] == {1: [1, 1, 1], 2: [2, 1], 16: [3]}[together]
    inputs = [stacked(part.images) for part in parts]
    np.testing.assert_array_equal(np.concatenate(inputs), found.inputs)
    report = verify_against(bundle, expected, SETTINGS, Watch())
    assert report.passed, report.verdict
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] <= fractions[-1] < 1
    # A lone image has its mirror image for company.
    assert "alone = inside a batch" in [found.name for found in report.checks]


@pytest.mark.slow
def test_accuracy_is_told_where_labels_are(digits, heldout, tmp_path):
    bundle = export_model(digits, tmp_path / "bundle", ExportSettings(calibration=heldout[:4]))
    report = verify_against(bundle, LiveReference(bundle, digits, heldout), SETTINGS)
    assert report.passed, report.verdict
    assert report.images == 360
    logits, _ = reference(digits, heldout.inputs(digits.config.preprocess, (48, 48)))
    accuracy = (logits.argmax(1) == heldout.labels).mean()
    found = report.results["top1_accuracy"], report.results["reference_top1_accuracy"]
    assert found == (pytest.approx(accuracy),) * 2
    assert accuracy > 0.99


# --- models at the edges -----------------------------------------------------------------------


def with_weight(model, name, change):
    return replace(model, weights=model.weights | {name: change(model.weights[name].copy())})


def test_one_class(golden, broken, verify):
    model = golden("svit_cls").model
    for name in ("head.weight", "head.bias"):
        model = with_weight(model, name, lambda array: array[:1])
    model = replace(model, config=replace(model.config, num_classes=1))
    report = verify(broken(model=model), model)
    assert report.passed, report.verdict


def poison(array):
    array[..., 0] = np.nan
    return array


def test_a_reference_that_computes_nan_is_no_reference(golden, export, verify):
    broken = with_weight(golden("svit_cls").model, "head.bias", poison)
    with pytest.raises(InputError, match="reference's own logits or margins are not finite"):
        verify(export("svit_cls", "dynamic"), broken)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "weight", "noun"),
    [
        ("backbone", "norm4.bias", "features"),
        ("backbone", "gates.1.mlp.fc2.bias", "features"),
        ("detect", "roi_head.mask_head.upsample.bias", "detections"),
    ],
)
def test_a_detectors_reference_that_computes_nan_is_none_either(
    detector, photo, tmp_path, verify, task, weight, noun
):
    model = detector if task == "detect" else backbone_of(detector)
    settings = ExportSettings(task=task, calibration=photo)
    bundle = export_model(model, tmp_path / "bundle", settings, sizes=SizeRange.parse("96x128", 32))
    with pytest.raises(InputError, match=f"reference's own {noun} or margins are not finite"):
        verify(bundle, with_weight(model, weight, poison))


@pytest.mark.usefixtures("parity_only")
@pytest.mark.parametrize(
    ("weight", "stage"),
    [
        ("blocks.5.norm1.bias", "block 5"),
        ("gates.2.mlp.fc2.bias", "gate 2"),
        ("head.bias", "head"),
    ],
)
def test_a_graph_that_computes_nan_is_refused(golden, broken, verify, model_fault, weight, stage):
    found = golden("svit_cls")
    model_fault(lambda model: with_weight(model, weight, poison))
    bundle = broken()
    assert not verify_against(bundle, StoredReference(bundle), SETTINGS).passed
    report = verify(bundle, found.model)
    assert not report.passed
    assert f"{stage} is the first" in report.verdict
    assert "by NaN, infinity" in report.verdict
    if stage != "gate 2":  # there NaN only prunes
        assert check(report, "logits").detail == "NaN or infinity in 3 of 3 images"
    json.dumps(report.to_dict(), allow_nan=False)
