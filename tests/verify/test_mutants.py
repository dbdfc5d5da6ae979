"""A few of the faults of `make mutants`: of each system one, each refused and its place named."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")

from mutation.cases import CASES
from mutation.designed import DESIGNED
from mutation.graph import Graph
from mutation.judge import Judge
from mutation.run import write_mutant

from svit_deploy.verify.checkpoint import load_reference_model

pytestmark = pytest.mark.slow

FAULTS = [
    ("deit/dense", "fp32", "a block off from image 20 on"),
    ("deit/dense", "bf16", "queries for keys"),
    ("deit_distilled/dense", "fp32", "two positions exchanged"),
    ("lvvit/dense", "fp16", "second head at 0.45"),
    ("dynamicvit/static", "fp32", "the best token left out"),
    ("evit_fuse/static", "fp32", "fused token 1 % smaller"),
    ("evovit/static", "fp32", "the first image's decisions"),
    ("ats/dynamic", "fp32", "sampled between other points"),
    ("tome/static", "fp32", "merged without weights"),
    ("stvitr/static", "fp32", "patches merged in another order"),
    ("svit_cls/budget", "fp32", "a budget by position"),
    ("svit_adapter/dynamic", "fp32", "softmax over points left out"),
    ("svit_mask_rcnn/dynamic", "fp32", "masks of the next class"),
    # What rounding may move in a half, margins alone, scales and images hides nothing either.
    ("dynamicvit/static", "bf16", "a block off from image 20 on"),
    ("digits/dynamic", "fp16", "a margin off from image 24 on"),
    ("svit_mask_rcnn/dynamic", "fp32", "boxes not scaled back"),
    ("svit_mask_rcnn/dynamic", "fp32", "all in the first image"),
]


@pytest.mark.parametrize(("name", "precision", "fault"), FAULTS)
def test_it_is_refused_and_its_place_is_named(tmp_path, name, precision, fault):
    case = CASES[name]
    bundle = case.export(tmp_path, precision)
    graph = Graph(bundle)
    next(found for found in DESIGNED if found.name == fault).change(graph)
    write_mutant(bundle, graph, tmp_path / "mutant")
    told = {"arch": case.arch, "overrides": dict(case.told)}
    model = load_reference_model(bundle, case.weights(tmp_path), **told)
    verdict = Judge(bundle, model).verify(tmp_path / "mutant")
    assert not verdict.passed
    assert graph.places() & set(verdict.named), verdict.words


def test_a_correct_float16_export_without_gate_outputs_passes(tmp_path):
    """Though emulated halves flip decisions in each of its images."""
    bundle = CASES["svit_cls/hidden"].export(tmp_path, "fp16")
    verdict = Judge(bundle, None).verify(bundle.path)
    assert verdict.passed, verdict.words
