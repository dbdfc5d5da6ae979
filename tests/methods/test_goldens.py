"""Each method from its official container to a verified bundle, equal to the official outputs."""

from __future__ import annotations

import numpy as np
import pytest

from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.verify.expected import Recomputed, Recorded
from svit_deploy.verify.run import verify_bundle
from svit_deploy.verify.settings import VerifySettings

pytest.importorskip("torch")

SETTINGS = VerifySettings(threads=1, repeats=2)
MODES = {
    "dynamicvit": ("static", "dense"),
    "evit_fuse": ("static", "dense"),
    "evit_nofuse": ("static", "dense"),
    "evovit": ("static", "dense"),
    "ats": ("dynamic", "masked", "dense"),
    "tome": ("static", "dense"),
    "stvitr": ("static",),
}
MADE = {"mergence": ("static", "dense"), "stvit": ("static",), "swin": ("dense",)}
CASES = [
    (name, mode, shown)
    for name, modes in (MODES | MADE).items()
    for mode in modes
    for shown in ((True,) if mode == "dense" else (True, False))
]


@pytest.mark.parametrize(("name", "mode", "shown"), CASES)
def test_exports_verify(recording, export_recording, name, mode, shown):
    """Against the checkpoint and against what was recorded, gates in view or not."""
    bundle = export_recording(name, mode, shown)
    for expectations in (Recorded(bundle), Recomputed(bundle, recording(name).model, None)):
        report = verify_bundle(bundle, expectations, SETTINGS)
        assert report.passed, report.verdict
        assert len(report.gates) == bundle.config.num_gates
        assert not any(gate.flips.flips for gate in report.gates)


@pytest.mark.parametrize("name", MODES)
def test_the_graph_computes_what_the_official_code_does(recording, export_recording, name):
    found = recording(name)
    bundle = export_recording(name, MODES[name][0])
    with OnnxRuntimeEngine(bundle.model_path, threads=1) as engine:
        actual = engine.run({"images": found.inputs})
    np.testing.assert_allclose(actual["logits"], found.arrays["logits"], rtol=0, atol=2e-5)
    if "keep_masks" in found.arrays:
        np.testing.assert_array_equal(found.of_patches(actual["keep_mask"]), found.keep_mask)


@pytest.mark.parametrize("name", ["dynamicvit", "evovit"])
def test_the_order_of_tokens_is_the_official_one(recording, export_recording, name):
    found = recording(name)
    bundle = export_recording(name, "static")
    with OnnxRuntimeEngine(bundle.model_path, threads=1) as engine:
        actual = engine.run({"images": found.inputs})
    margin, keep = found.of_patches(actual["margin"]), found.of_patches(actual["keep_mask"])
    for stage in range(bundle.config.num_gates):
        order = np.argsort(-margin[:, stage], axis=1, kind="stable")
        expected = found.arrays[f"order_stage{stage}"]
        np.testing.assert_array_equal(order[:, : expected.shape[1]], expected)
        assert (keep[:, stage].sum(axis=1) == bundle.method.kept(bundle.config)[stage] - 1).all()


@pytest.mark.parametrize("name", ["evit_fuse", "evit_nofuse"])
def test_evit_ranks_as_the_official_code_does(recording, name):
    """Positions among the tokens there are, a fused one last."""
    from svit_deploy.models.reference import Reference

    found = recording(name)
    values = Reference(found.model).run(found.inputs).values
    for stage in range(3):
        expected = found.arrays[f"topk_idx_stage{stage}"]
        np.testing.assert_array_equal(values[f"gate_{stage}.decision"], expected)


def test_dynamicvit_scores(recording):
    """A wrong LayerNorm epsilon inside a predictor shows up nowhere else."""
    from svit_deploy.models.reference import Reference

    found = recording("dynamicvit")
    values = Reference(found.model).run(found.inputs).values
    for stage in range(3):
        scores = found.arrays[f"score_stage{stage}"]
        margin = scores[..., 0] - scores[..., 1]
        np.testing.assert_allclose(values[f"gate_{stage}.margin"], margin, rtol=0, atol=5e-5)


def test_tome_merges_what_the_official_code_does(recording, export_recording):
    """Patches are of one token in the end exactly where they are there."""
    found = recording("tome")
    bundle = export_recording("tome", "static")
    with OnnxRuntimeEngine(bundle.model_path, threads=1) as engine:
        actual = engine.run({"images": found.inputs})
    for image, rows in enumerate(found.arrays["source"]):
        source, kept = actual["source"][image, -1], actual["keep_mask"][image, -1]
        assert kept.sum() == len(rows) == bundle.method.kept(bundle.config)[-1]
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
