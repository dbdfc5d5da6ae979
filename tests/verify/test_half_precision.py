"""Half-precision graphs are held to what rounding explains, and to no more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.images import synthetic_images
from svit_deploy.images.prepared import Prepared
from svit_deploy.model.config import TokenMode
from svit_deploy.tasks import TASKS
from svit_deploy.tasks.reference import Reference
from svit_deploy.verify.expected import LiveReference, StoredReference
from svit_deploy.verify.rounding import predicted_flips
from svit_deploy.verify.run import verify_against
from tests.contract.test_families import noise, small_model
from tests.methods.conftest import load_recording
from tests.verify.checks import SETTINGS
from tests.verify.test_faults import tanh_gelu

LIVE = "every stage by itself, in float32"
STORED = "gates and logits, in float32"


def changed(name, change):
    """A model with one weight changed."""
    return lambda model: replace(
        model, weights={**model.weights, name: change(model.weights[name])}
    )


def to_int8(weight):
    step = np.abs(weight).max() / 127
    return (np.round(weight / step) * step).astype(np.float32)


def one_row(weight):
    weight = weight.copy()
    weight[3] *= 1.1
    return weight


def noisy(weight):
    spread = 0.01 * weight.std() * np.random.default_rng(0).standard_normal(weight.shape)
    return weight + spread.astype(np.float32)


FAULTS = {
    "fc2 rounded to int8": ("blocks.5.mlp.fc2.weight", to_int8),
    "a row of fc1 times 1.1": ("blocks.5.mlp.fc1.weight", one_row),
    "noise of 1 % in fc1": ("blocks.5.mlp.fc1.weight", noisy),
    "noise of 1 % in proj": ("blocks.5.attn.proj.weight", noisy),
}


@pytest.mark.slow
@pytest.mark.usefixtures("parity_only")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("fault", [*FAULTS, "tanh GELU"])
def test_a_fault_below_the_noise_of_halves_is_refused(
    digits, heldout, broken, model_fault, graph_fault, fault, precision
):
    if fault in FAULTS:
        model_fault(changed(*FAULTS[fault]))
    else:
        graph_fault(tanh_gelu("block_5/mlp/"))
    bundle = broken(model=digits, precision=precision, calibration=heldout[:8])
    live = verify_against(bundle, LiveReference(bundle, digits), SETTINGS)
    assert live.verdict.startswith(f"FAIL broken: {LIVE}: block 5 is the first"), live.verdict
    wrong = next(stage for stage in live.stages_in_float32 if stage.error > stage.limit)
    assert wrong.error > 5 * wrong.limit, "it is told by luck"
    if fault == "tanh GELU":
        return  # its trace in the logits is within what float32 graphs may be off by
    stored = verify_against(bundle, StoredReference(bundle), SETTINGS)
    assert stored.verdict.startswith(f"FAIL broken: {STORED}"), stored.verdict


@pytest.mark.slow
@pytest.mark.usefixtures("parity_only")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["svit_cls_224", "deit_distilled"])
def test_what_rounding_explains_passes(golden, broken, verify, name, precision):
    mode = "dense" if "deit" in name else "masked"
    bundle = broken(name, mode=mode, precision=precision)
    report = verify(bundle, name)
    assert report.passed, report.verdict
    assert max(stage.error for stage in report.stages_in_float32) < 2e-5, "computes in float32"
    assert report.limits.logits < TASKS["classify"].limits[precision].logits


@pytest.mark.slow
@pytest.mark.usefixtures("parity_only")
def test_flips_are_as_many_as_margins_lie_near_their_cut(tmp_path):
    """Its margins are differences of a distribution function: many lie within rounding of 0."""
    model = load_recording("ats").model
    images = synthetic_images(8, model.config.image_size)
    settings = ExportSettings(precision="bf16", tokens=TokenMode.MASKED, calibration=images)
    bundle = export_model(model, tmp_path / "out", settings)
    report = verify_against(bundle, LiveReference(bundle, model, images), SETTINGS)
    assert report.passed, report.verdict
    flipped = sum(gate.flips.flips for gate in report.gates)
    tokens = sum(gate.flips.tokens for gate in report.gates)
    assert flipped > 0.01 * tokens, "no case of many near ties"


def test_predicted_flips():
    distance = np.array([[[0.5, 3.0, np.inf]]])
    moved = np.array([[[0.0, 0.25, 1.0]]])  # of twice that, both reach the first, none the others
    assert predicted_flips(distance, moved) == pytest.approx(1.0)
    assert predicted_flips(distance, np.zeros((1, 1, 3))) == 0


@pytest.mark.parametrize(
    ("family", "task", "mode"),
    [
        ("svit", "classify", "masked"),
        ("ats", "classify", "masked"),
        ("evit", "classify", "static"),
        ("evovit", "classify", "static"),
        ("dynamicvit", "classify", "static"),
        ("tome", "classify", "static"),
        ("mergence", "classify", "static"),
        ("stvit", "classify", "static"),
        ("stvit_swin", "classify", "static"),
        ("stvitr", "classify", "static"),
        ("evovit_adapter", "backbone", "static"),
    ],
)
def test_a_repeated_run_changes_nothing(family, task, mode):
    """Forced to its own decisions, stage by stage or as a whole, the reference is itself."""
    model = small_model(family, task)
    reference = Reference(model, TASKS[task])
    size = (64, 96) if TASKS[task].many_sizes else model.config.image_size
    images = [Prepared.whole(pixels, "") for pixels in noise(size).arrays]
    first = reference.run(images, stages=True)
    for stages in (False, True):
        again = reference.repeat(images, first, stages=stages)
        for name, value in first.values.items():
            np.testing.assert_array_equal(again.values[name], value, err_msg=name)
        for mine, theirs in zip(again.outputs, first.outputs, strict=True):
            for name, value in theirs.items():
                np.testing.assert_array_equal(mine[name], value, err_msg=name)
    rounded = reference.with_weights_in("bf16").repeat(images, first, stages=True)
    assert any((rounded.stages[name] != value).any() for name, value in first.stages.items())
