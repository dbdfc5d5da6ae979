"""Each method, exported, computes what the official code computes from the same container."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.model.result import stack
from svit_deploy.tasks import TASKS
from svit_deploy.tasks.reference import Reference
from svit_deploy.verify.expected import StoredReference
from svit_deploy.verify.run import verify_against
from svit_deploy.verify.settings import VerifySettings
from tests.methods.conftest import STVITR

pytestmark = pytest.mark.slow

MODES = {
    "dynamicvit": "static",
    "dynamicvit_lvvit": "static",
    "dynamicvit_swin": "static",
    "dynamicvit_convnext": "static",
    "evit_fuse": "static",
    "evit_nofuse": "static",
    "evovit": "static",
    "ats": "dynamic",
    "tome": "static",
    "stvitr": "static",
    "lvvit": "dense",
} | {f"stvitr_{variant}": "static" for variant in STVITR}
CLASSIFY = TASKS["classify"]


def run(bundle, images):
    with OnnxRuntimeEngine(bundle.model_path, threads=1) as engine:
        return engine.run({"images": images})


@pytest.mark.parametrize("name", MODES)
def test_the_graph_computes_what_the_official_code_does(recording, export_recording, name):
    found = recording(name)
    actual = run(export_recording(name, MODES[name]), found.inputs)
    np.testing.assert_allclose(actual["logits"], found.arrays["logits"], rtol=0, atol=2e-5)
    if "keep_masks" in found.arrays:
        np.testing.assert_array_equal(found.of_patches(actual["keep_mask"]), found.keep_mask)


@pytest.mark.parametrize("name", ["dynamicvit", "dynamicvit_lvvit", "evovit"])
def test_the_order_of_tokens_is_the_official_one(recording, export_recording, name):
    found = recording(name)
    bundle = export_recording(name, "static")
    actual = run(bundle, found.inputs)
    margin, keep = found.of_patches(actual["margin"]), found.of_patches(actual["keep_mask"])
    kept = bundle.rows(bundle.config.image_size)
    for stage in range(bundle.config.num_gates):
        order = np.argsort(-margin[:, stage], axis=1, kind="stable")
        expected = found.arrays[f"order_stage{stage}"]
        np.testing.assert_array_equal(order[:, : expected.shape[1]], expected)
        assert (keep[:, stage].sum(axis=1) == kept[stage] - 1).all()


@pytest.mark.parametrize("name", ["evit_fuse", "evit_nofuse"])
def test_evit_ranks_as_the_official_code_does(recording, name):
    """Positions among the tokens there are, a fused one last."""
    found = recording(name)
    values = Reference(found.model, CLASSIFY).run(found.prepared).values
    for stage in range(3):
        expected = found.arrays[f"topk_idx_stage{stage}"]
        np.testing.assert_array_equal(values[f"gate_{stage}.decision"], expected)


@pytest.mark.parametrize(
    "name", ["dynamicvit", "dynamicvit_lvvit", "dynamicvit_swin", "dynamicvit_convnext"]
)
def test_dynamicvit_scores(recording, name):
    """A wrong LayerNorm epsilon inside a predictor shows up nowhere else."""
    found = recording(name)
    values = Reference(found.model, CLASSIFY).run(found.prepared).values
    for stage in range(3):
        scores = found.arrays[f"score_stage{stage}"]
        margin = scores[..., 0] - scores[..., 1]
        np.testing.assert_allclose(values[f"gate_{stage}.margin"], margin, rtol=0, atol=5e-5)


@pytest.mark.parametrize("mode", ["dynamic", "budget", "masked"])
def test_avit_halts_as_the_official_code_does(recording, export_recording, mode):
    """But that all tokens of an image stop with its class token, which changes no logit."""
    found, budget = recording("avit"), {"budget": "1.0"} if mode == "budget" else {}
    actual = run(export_recording("avit", mode, **budget), found.inputs)
    official = found.keep_mask
    active = official & official[:, :, :1]
    assert (active != official).any() and not active[:, -1, 0].all()
    np.testing.assert_array_equal(actual["keep_mask"], active[:, 1:])
    np.testing.assert_allclose(actual["logits"], found.arrays["logits"], rtol=0, atol=2e-5)
    # In front of a block a token's margin is what its scores so far leave, and its class token's.
    left = 0.99 - found.arrays["halting_scores"].transpose(1, 0, 2).cumsum(axis=1)[:, :-1]
    left = np.where(active[:, :-1], np.minimum(left, left[:, :, :1]), -np.inf)
    np.testing.assert_allclose(actual["margin"], left, rtol=0, atol=5e-5)
    depth = active.sum(axis=1)
    own = official[:, :, :1].all(axis=1).ravel()  # of images whose class token never halts
    np.testing.assert_array_equal(depth[own], found.arrays["depth"][own])


@pytest.mark.parametrize("name", ["dynamicvit_swin", "dynamicvit_convnext"])
def test_tokens_come_back_to_the_slow_way(recording, name):
    """Three choices of all tokens, none inside the one before; the counts are the official ones."""
    found = recording(name)
    keep = Reference(found.model, CLASSIFY).run(found.prepared).selected.keep_mask
    assert [set(counts) for counts in keep.sum(axis=2).T] == [{44}, {31}, {19}]
    for gate in (1, 2):
        assert (keep[:, gate] & ~keep[:, gate - 1]).any(axis=1).all()


@pytest.mark.parametrize("variant", STVITR)
def test_what_a_training_of_stvitr_chooses(recording, variant):
    """Each setting changes the logits far beyond the tolerance, and the reference follows."""
    found, published = recording(f"stvitr_{variant}"), recording("stvitr")
    logits = stack(Reference(found.model, CLASSIFY).run(found.prepared).outputs, "logits")
    np.testing.assert_allclose(logits, found.arrays["logits"], rtol=0, atol=2e-5)
    assert np.abs(logits - published.arrays["logits"]).max() > 5e-3


def test_both_heads_of_lvvit(recording):
    """The tokens that they read, and what each makes of them."""
    found = recording("lvvit")
    arrays, weights = found.arrays, found.model.weights
    result = Reference(found.model, CLASSIFY).run(found.prepared, stages=True)
    x = result.stages["block_7.out"].astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    tokens = x * weights["norm.weight"] + weights["norm.bias"]
    np.testing.assert_allclose(tokens, arrays["tokens"], rtol=0, atol=2e-5)

    def head(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    first, best = head(tokens[:, 0], "head"), head(tokens[:, 1:], "aux_head").max(axis=1)
    np.testing.assert_allclose(first, arrays["cls_logits"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(best, arrays["aux_max"], rtol=0, atol=2e-5)
    logits = stack(result.outputs, "logits")
    np.testing.assert_allclose(logits, first + best / 2, rtol=0, atol=2e-5)
    np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=2e-5)
    assert np.abs(logits - arrays["logits_ema"]).max() > 0.1  # of weights that are not used


def test_tome_merges_what_the_official_code_does(recording, export_recording):
    """Patches are of one token in the end exactly where they are there."""
    found = recording("tome")
    bundle = export_recording("tome", "static")
    actual, kept_rows = run(bundle, found.inputs), bundle.rows(bundle.config.image_size)
    for image, rows in enumerate(found.arrays["source"]):
        source, kept = actual["source"][image, -1], actual["keep_mask"][image, -1]
        assert kept.sum() == len(rows) == kept_rows[-1]
        names = [set(source[row]) for row in rows]
        assert all(len(name) == 1 for name in names)
        assert set.union(*names) == set(np.flatnonzero(kept))


def test_ats_does_not_depend_on_the_batch(recording, export_recording):
    """As the official code for one image; its own batches compute something else."""
    found = recording("ats")
    with OnnxRuntimeEngine(export_recording("ats", "dynamic").model_path, threads=1) as engine:
        together = engine.run({"images": found.inputs})
        alone = [engine.run({"images": image[None]}) for image in found.inputs]
    for image, outputs in enumerate(alone):
        np.testing.assert_allclose(together["logits"][image], outputs["logits"][0], atol=1e-5)
        np.testing.assert_array_equal(together["keep_mask"][image], outputs["keep_mask"][0])
    assert np.abs(together["logits"] - found.arrays["logits_batch"]).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode"), [("evit_fuse", "static"), ("tome", "static"), ("ats", "dynamic")]
)
def test_gates_out_of_view(export_recording, name, mode):
    """What a method ranks, counts or merges is read off its graph as off its outputs."""
    bundle = export_recording(name, mode, shown=False)
    report = verify_against(bundle, StoredReference(bundle), VerifySettings(threads=1, repeats=2))
    assert report.passed, report.verdict
    assert len(report.gates) == bundle.config.num_gates
    assert not any(gate.flips.flips for gate in report.gates)
    assert "alike without its gates in view" in [check.name for check in report.checks]
