"""Faults in a method's graph: each is refused, and the stage at fault is named."""

from __future__ import annotations

import re
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from svit_deploy.export.onnx import export_model
from svit_deploy.methods.swin import graph as swin
from svit_deploy.verify.subject import Observed, Subject

from svit_deploy.export.settings import ExportSettings
from svit_deploy.images import ImageSet
from svit_deploy.methods import evit, evovit, mergence, method_of
from svit_deploy.methods.ats import graph as ats
from svit_deploy.methods.tome import graph as tome
from svit_deploy.model.config import TokenMode
from svit_deploy.verify.expected import Recomputed, Recorded
from svit_deploy.verify.report import VerifyReport
from svit_deploy.verify.run import verify_bundle
from svit_deploy.verify.settings import VerifySettings

pytest.importorskip("torch")

SETTINGS = VerifySettings(threads=1, repeats=2)


def exported(recording, name, tmp_path, mode=None):
    found = recording(name)
    names = tuple(f"input-{i}" for i in range(len(found.inputs)))
    images = ImageSet(found.inputs, names, None, "0" * 64, "npz")
    settings = ExportSettings(tokens=mode, calibration=images)
    return export_model(found.model, tmp_path / "bundle", settings)


def written_from(monkeypatch, model, change):
    """Lets the method's graph be written from a changed model."""
    kind = type(method_of(model.config))
    writer = kind.graph
    monkeypatch.setattr(kind, "graph", staticmethod(lambda m, *rest: writer(change(m), *rest)))


def with_settings(**changes):
    def change(model):
        settings = replace(model.config.settings, **changes)
        return replace(model, config=replace(model.config, settings=settings))

    return change


def with_bias(name, shift):
    def change(model):
        weights = dict(model.weights)
        weights[name] = weights[name] + np.float32(shift)
        return replace(model, weights=weights)

    return change


CHANGED_MODELS = {
    "a block before": ("evit_fuse", with_bias("blocks.1.mlp.fc2.bias", 1e-3), "block 1 is"),
    "a predictor": ("dynamicvit", with_bias("predictors.1.fc2.bias", 1e-2), "gate 1 is"),
    "a block after": ("dynamicvit", with_bias("blocks.10.attn.proj.bias", 1e-3), "block 10 is"),
    "the weight of a ranking": ("evovit", with_settings(tradeoff=0.4), "gate 1 is"),
    "attention by size": ("tome", with_settings(prop_attn=False), "block 1 is"),
    "a shortcut": ("stvitr", with_settings(shortcut=True), "block 5 is"),
    "a key in a sampling block": ("ats", with_bias("blocks.5.attn.qkv.bias", 1e-2), "gate 2 is"),
    "the head": ("evovit", with_bias("head.bias", 1e-3), "head is"),
}


@pytest.mark.parametrize("fault", CHANGED_MODELS)
def test_another_model(recording, tmp_path, monkeypatch, fault):
    name, change, words = CHANGED_MODELS[fault]
    model = recording(name).model
    written_from(monkeypatch, model, change)
    bundle = exported(recording, name, tmp_path)
    report = verify_bundle(bundle, Recomputed(bundle, model, None), SETTINGS)
    assert not report.passed
    assert f"every stage by itself: {words} the first" in report.verdict


def nearest_not_farthest(graph, scores, count):
    return graph.ops("TopK", scores, graph.constant([count]), outputs=2, axis=1, largest=0)[1]


def equal_shares(graph, x, moved, weight, moved_weight, target, count):
    one = graph.constant(1, np.float32)
    ones = graph.op("Expand", one, graph.op("Shape", moved_weight))
    return MERGE(graph, x, moved, one, ones, target, count)


MERGE = mergence.merge_tokens
MARGIN = ats.sampling_margin


def later_samples(graph, scores, alive):
    """As if the smallest significances counted more."""
    return MARGIN(graph, graph.op("Sqrt", scores), alive)


CODE: dict[str, tuple[str, ModuleType, str, object, str]] = {
    "the worst are kept": (
        "evit_nofuse",
        evit,
        "top_tokens",
        nearest_not_farthest,
        "does not keep",
    ),
    "and here": ("evovit", evovit, "top_tokens", nearest_not_farthest, "does not keep"),
    "means without weights": ("mergence", mergence, "merge_tokens", equal_shares, "block 3 is"),
    "another significance": ("ats", ats, "sampling_margin", later_samples, "gate 0 is"),
    "cosines of no unit": ("tome", tome, "unit_rows", lambda graph, x: x, "gate 0 is"),
    "windows that wrap around": (
        "swin",
        swin,
        "hidden_pairs",
        lambda stage, shift: np.zeros((stage.tokens // 49, 49, 49), np.float32),
        "block 1 is",
    ),
}


@pytest.mark.parametrize("fault", CODE)
def test_another_computation(recording, tmp_path, monkeypatch, fault):
    name, module, function, wrong, words = CODE[fault]
    monkeypatch.setattr(module, function, wrong)
    mode = TokenMode.DENSE if name == "swin" else None
    bundle = exported(recording, name, tmp_path, mode)
    monkeypatch.undo()
    report = verify_bundle(bundle, Recomputed(bundle, recording(name).model, None), SETTINGS)
    assert not report.passed
    details = " ".join(check.detail for check in report.checks if not check.passed)
    assert words in details


@pytest.mark.parametrize("name", ["evit_nofuse", "tome", "mergence", "ats"])
def test_without_a_checkpoint(recording, tmp_path, monkeypatch, name):
    """What the export recorded is enough to refuse a graph that decides otherwise."""
    model = recording(name).model
    written_from(monkeypatch, model, with_bias("blocks.0.attn.qkv.bias", 0.3))
    bundle = exported(recording, name, tmp_path)
    report = verify_bundle(bundle, Recorded(bundle), SETTINGS)
    assert not report.passed
    assert re.search("gate|margin|logits", report.verdict)


@pytest.mark.parametrize("name", ["tome", "mergence"])
def test_a_merge_into_another_token_is_a_fault(recording, tmp_path, name):
    """The same tokens stay; only what they are made of differs."""
    bundle = exported(recording, name, tmp_path)
    report = verify_bundle(bundle, Recorded(bundle), SETTINGS)
    assert report.passed, report.verdict
    expected = next(Recorded(bundle).parts())
    wanted = Observed(
        expected.logits,
        expected.keep_mask,
        expected.margin,
        source=expected.source,
        lead=expected.lead,
    )
    # The token merged with the largest lead goes into another one that stays.
    lead = np.where(np.isinf(expected.lead), -1, expected.lead)[0, 0]
    token = int(lead.argmax())
    others = np.flatnonzero(expected.keep_mask[0, 0])
    source = expected.source.copy()
    source[0, 0, token] = others[others != source[0, 0, token]][0]
    actual = replace(wanted, source=source)
    subject = Subject(bundle, SETTINGS, VerifyReport(bundle, 1, ""))
    flips, explained, words = subject.compare_decisions(actual, wanted)
    assert not explained
    assert (flips[0].flips, flips[0].faults) == (1, 1)
    assert "gate 0 decides 1 tokens differently" in words
