"""Faults in a method's graph: each is refused, and the stage at fault is named."""

from __future__ import annotations

import re
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy.backbones.lvvit import graph as lvvit
from svit_deploy.backbones.swin import graph as swin
from svit_deploy.export import pipeline
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.methods import dynamic_spatial, evit, evovit, mergence
from svit_deploy.methods.ats import graph as ats
from svit_deploy.methods.avit import AvitGraph
from svit_deploy.methods.tome import graph as tome
from svit_deploy.model.config import TokenMode
from svit_deploy.verify.expected import LiveReference, StoredReference
from svit_deploy.verify.exported import ModelUnderTest
from svit_deploy.verify.report import VerifyReport
from svit_deploy.verify.run import verify_against
from svit_deploy.verify.settings import VerifySettings

pytestmark = pytest.mark.slow

SETTINGS = VerifySettings(threads=1, repeats=2)


@pytest.fixture(autouse=True)
def parity_only(monkeypatch):
    """How a graph behaves cannot tell where it is wrong, and costs more."""
    monkeypatch.setattr("svit_deploy.verify.run.check_behaviour", lambda *arguments: None)


def cases(table):
    """The faults of a table, those in graphs that take long to load marked."""
    slow = ("ats", "tome")
    return [
        pytest.param(fault, marks=[pytest.mark.slow] if row[0] in slow else [])
        for fault, row in table.items()
    ]


def exported(recording, name, tmp_path, mode=None):
    found = recording(name)
    settings = ExportSettings(tokens=mode, calibration=found.images)
    return export_model(found.model, tmp_path / "bundle", settings)


def written_from(monkeypatch, change):
    """Lets graphs be written from a changed model."""
    write = pipeline.build_graph
    monkeypatch.setattr(pipeline, "build_graph", lambda m, *rest: write(change(m), *rest))


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
    "learnt tokens that stay": ("stvit_swin", with_settings(keep_learnt=True), "block 4 is"),
    "all before windows": ("stvit_swin", with_settings(local_first=False), "block 5 is"),
    "a key in a sampling block": ("ats", with_bias("blocks.5.attn.qkv.bias", 1e-2), "gate 2 is"),
    "a fast way": (
        "dynamicvit_swin",
        with_bias("layers.2.blocks.4.fast.linear.bias", 1e-2),
        "block 8 is",
    ),
    "a slow way": ("dynamicvit_convnext", with_bias("stages.2.3.pwconv2.bias", 1e-1), "block 5 is"),
    "another center": ("avit", with_settings(gate_center=3.01), "gate 0 is"),
    "what is added": ("lvvit", with_settings(skip_lam=1.99), "block 0 is"),
    "one head of two": ("dynamicvit_lvvit", with_bias("aux_head.bias", 1e-2), "head is"),
    "the head": ("evovit", with_bias("head.bias", 1e-3), "head is"),
}


@pytest.mark.parametrize("fault", cases(CHANGED_MODELS))
def test_another_model(recording, tmp_path, monkeypatch, fault):
    name, change, words = CHANGED_MODELS[fault]
    model = recording(name).model
    written_from(monkeypatch, change)
    bundle = exported(recording, name, tmp_path)
    report = verify_against(bundle, LiveReference(bundle, model), SETTINGS)
    assert not report.passed
    assert f"every stage by itself: {words} the first" in report.verdict


def nearest_not_farthest(graph, scores, count, most=0):
    return graph.ops("TopK", scores, graph.constant([count]), outputs=2, axis=1, largest=0)[1]


def equal_shares(graph, x, moved, weight, moved_weight, target, count):
    one = graph.constant(1, np.float32)
    ones = graph.op("Expand", one, graph.op("Shape", moved_weight))
    return MERGE(graph, x, moved, one, ones, target, count)


MERGE = mergence.merge_tokens
MARGIN = ats.sampling_margin


def later_samples(graph, scores, alive, samples, most):
    """As if the smallest significances counted more."""
    return MARGIN(graph, graph.op("Sqrt", scores), alive, samples, most)


def nothing_left(tokens):
    """As if no weight were left for the state that a class token halts with."""
    return tokens.graph.constant([[0]], np.float32)


CODE: dict[str, tuple[str, ModuleType | type, str, object, str]] = {
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
    "a mean of other weights": ("avit", AvitGraph, "left", nothing_left, "head is"),
    "the worst go the slow way": (
        "dynamicvit_swin",
        dynamic_spatial,
        "top_tokens",
        nearest_not_farthest,
        "does not keep",
    ),
    "a folded batch norm": ("lvvit", lvvit, "BATCH_NORM_EPS", 1e-3, "embedding is"),
    "windows that wrap around": (
        "swin",
        swin,
        "regions",
        lambda stage, shifts: np.zeros((stage.tokens // 49, 49), np.int64),
        "block 1 is",
    ),
}


@pytest.mark.parametrize("fault", cases(CODE))
def test_another_computation(recording, tmp_path, monkeypatch, fault):
    name, module, function, wrong, words = CODE[fault]
    monkeypatch.setattr(module, function, wrong)
    mode = TokenMode.DENSE if name == "swin" else None
    bundle = exported(recording, name, tmp_path, mode)
    monkeypatch.undo()
    report = verify_against(bundle, LiveReference(bundle, recording(name).model), SETTINGS)
    assert not report.passed
    details = " ".join(check.detail for check in report.checks if not check.passed)
    assert words in details


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evit_nofuse", "tome", "mergence", "ats"])
def test_without_a_checkpoint(recording, tmp_path, monkeypatch, name):
    """What the export recorded is enough to refuse a graph that decides otherwise."""
    written_from(monkeypatch, with_bias("blocks.0.attn.qkv.bias", 0.3))
    bundle = exported(recording, name, tmp_path)
    report = verify_against(bundle, StoredReference(bundle), SETTINGS)
    assert not report.passed
    assert re.search("gate|margin|logits", report.verdict)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tome", "mergence"])
def test_a_merge_into_another_token_is_a_fault(recording, tmp_path, name):
    """The same tokens stay; only what they are made of differs."""
    bundle = exported(recording, name, tmp_path)
    report = verify_against(bundle, StoredReference(bundle), SETTINGS)
    assert report.passed, report.verdict
    wanted = next(StoredReference(bundle).parts()).result.selected
    # The token merged with the largest lead goes into another one that stays.
    lead = np.where(np.isinf(wanted.lead), -1, wanted.lead)[0, 0]
    token = int(lead.argmax())
    others = np.flatnonzero(wanted.keep_mask[0, 0])
    source = wanted.source.copy()
    source[0, 0, token] = others[others != source[0, 0, token]][0]
    model = ModelUnderTest(bundle, SETTINGS, VerifyReport(bundle, 1, ""))
    rows = bundle.rows(bundle.config.image_size)
    flips = model.flips(replace(wanted, source=source), wanted, rows)
    explained, words = model.explain_flips(flips)
    assert not explained
    assert (flips[0].flips, flips[0].faults) == (1, 1)
    assert "gate 0 decides 1 token differently" in words
