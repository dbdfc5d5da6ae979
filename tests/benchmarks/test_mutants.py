"""The benchmark of seeded faults: faults are where they say, effects are measured, runs resume."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import mutants
from mutation.cases import ALL, CASES, Case, precision_of
from mutation.designed import DESIGNED
from mutation.drawn import draw
from mutation.effect import Effect, Effects
from mutation.graph import Graph
from mutation.judge import Judge
from mutation.results import Results
from mutation.run import Group, Record, write_mutant
from mutation.run import mutants as mutants_of
from mutation.table import render

from svit_deploy.bundle import Bundle, open_bundle
from svit_deploy.loading.load import load_model
from svit_deploy.model.model import Model
from tests.told import SETTINGS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DEIT = "deit/dense"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return CASES[DEIT].export(tmp_path_factory.mktemp("mutants"), "fp32")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    case = CASES[DEIT]
    weights = case.weights(tmp_path_factory.mktemp("weights"))
    return load_model(weights, overrides=dict(case.told))


@pytest.fixture(scope="module")
def effects(bundle, model) -> Effects:
    return Effects(bundle, model)


def put(bundle: Bundle, name: str) -> Graph:
    graph = Graph(bundle)
    next(fault for fault in DESIGNED if fault.name == name).change(graph)
    return graph


# --- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_every_fault_goes_to_one_system_and_precision(seed):
    groups = [Group(case, precision_of(case, seed), seed) for case in CASES]
    assert {group.precision for group in groups} == set(ALL)
    dealt = [(group.case, name) for group in groups for name, _ in mutants_of(group)]
    assert len(set(dealt)) == len(dealt)
    cases = {name.removeprefix("designed/"): case for case, name in dealt}
    assert all(cases[fault.name] in fault.cases for fault in DESIGNED)
    drawn = sum(name.startswith("drawn/") for _, name in dealt)
    assert len(dealt) - drawn == len(DESIGNED) >= 100
    assert len(DESIGNED) <= drawn < 1.5 * len(DESIGNED)


def test_designed_faults_are_for_cases_that_there_are():
    pairs = [(fault.name, case) for fault in DESIGNED for case in fault.cases]
    assert {case for _, case in pairs} <= set(CASES)
    assert len(set(pairs)) == len(pairs)
    assert len({fault.name for fault in DESIGNED}) == len(DESIGNED)


def test_every_golden_has_a_case():
    assert SETTINGS.keys() <= {name.split("/")[0] for name in CASES}


@pytest.mark.slow
def test_designed_faults_change_the_graph_in_a_place_that_verify_knows(bundle):
    right = bundle.load_model().SerializeToString(deterministic=True)
    labels = {"embedding", "head", "inputs", "manifest", "metadata", "outputs"}
    labels |= {f"block {block}" for block in range(12)}
    for fault in DESIGNED:
        if DEIT not in fault.cases:
            continue
        graph = Graph(bundle)
        fault.change(graph)
        wrong = graph.finished().SerializeToString(deterministic=True)
        assert (wrong, graph.manifest) != (right, bundle.manifest), fault.name
        assert graph.places() and graph.places() <= labels, fault.name


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("GELU by tanh", "block 4"),
        ("head without bias", "head"),
        ("positions shifted", "embedding"),
        ("neighbours leak", "head"),
        ("a block off from image 20 on", "block 5"),
        ("another mean", "inputs"),
    ],
)
def test_places(bundle, name, place):
    assert put(bundle, name).places() == {place}


def test_other_nodes_keep_a_constant_that_they_share(bundle):
    graph = put(bundle, "attention scale 1 % off")
    scales = {
        float(graph.constant(node.input[1]))
        for node in graph.nodes
        if node.op_type == "Mul" and node.name.endswith("attention/Mul")
    }
    assert sorted(scales) == pytest.approx([8**-0.5, 1.01 * 8**-0.5])


def test_drawn_faults_are_the_same_each_time_and_differ_from_draw_to_draw(bundle):
    def drawn(seed: int) -> tuple[str, bytes]:
        graph = Graph(bundle)
        words = draw(graph, np.random.default_rng(seed))
        return words, graph.finished().SerializeToString(deterministic=True)

    found = [drawn(seed) for seed in range(8)]
    assert found == [drawn(seed) for seed in range(8)]
    assert len({words for words, _ in found}) == 8


# --- effects and verdicts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "none"),
    [("fc2 in int8, row by row", False), ("logits off in batches of 30", False)],
)
def test_effects(bundle, effects, tmp_path, name, none):
    write_mutant(bundle, put(bundle, name), tmp_path / "mutant")
    assert open_bundle(tmp_path / "mutant").model_sha256 != bundle.model_sha256
    found = effects.measure(tmp_path / "mutant")
    assert (found.none, found.runs) == (none, True)
    assert found.times > 100


def test_what_attention_does_not_see_is_equivalent(bundle, effects, tmp_path):
    """The same number added to all scores of a query: softmax takes no notice of it."""
    assert effects.measure(bundle.path) == Effect(0.0, "nothing", 0)
    graph = Graph(bundle)
    graph.change_weight("blocks.2.attn.k.bias", lambda bias: bias * 1.5)
    write_mutant(bundle, graph, tmp_path / "mutant")
    found = effects.measure(tmp_path / "mutant")
    assert found.none
    assert found.times > 0


def test_a_graph_that_does_not_run(bundle, effects, tmp_path):
    write_mutant(bundle, put(bundle, "an output renamed"), tmp_path / "mutant")
    assert not effects.measure(tmp_path / "mutant").runs


def test_verdicts_name_the_place(bundle, model, tmp_path):
    judge = Judge(bundle, model)
    assert judge.verify(bundle.path).passed
    for name, named in (
        ("GELU by tanh", ("block 4", "every stage by itself")),
        ("logits off from image 16 on", ("head", "alone = inside a large batch")),
    ):
        write_mutant(bundle, put(bundle, name), tmp_path / "mutant")
        verdict = judge.verify(tmp_path / "mutant")
        assert (verdict.passed, verdict.named) == (False, named)


# --- results -----------------------------------------------------------------------------------


def record(name: str, **changes) -> Record:
    known = {"kind": "designed", "fault": "f", "passed": False, "words": "", "places": ["block 1"]}
    return Record(f"deit/dense/fp32/designed/{name}", **known | changes)


def test_the_table_counts():
    effect = {"times": 9.0, "what": "logits_error", "decisions": 0}
    records = [
        record("a", named=["block 1"], effect=effect),
        record("b", named=["block 2"], effect=effect),
        record("c", passed=True, effect=effect),
        record("d", passed=True, effect=effect | {"times": 0.5}),
        record("e", passed=True),
        Record("deit/dense/fp32/control/checkpoint", "control", "none", True, "PASS"),
    ]
    made = {"code": "0", "seed": 0, "reference": "checkpoint", "processor": "", "versions": {}}
    text = render(records, made)
    assert "| fp32, designed | 5 | 4 | 2 (50.0%) | 1 | 2 | 1 | 0 |" in text
    assert "| fp32 | 1 | 0 |" in text
    assert "Survived: 2" in text and "9x rounding in logits_error" in text


def test_results_of_another_seed_or_other_code_are_not_continued(tmp_path):
    path = tmp_path / "r.json"
    Results(path, 0, recorded=False).add([record("a")])
    assert list(Results(path, 0, recorded=False).records) == [record("a").id]
    with pytest.raises(SystemExit, match="of another seed"):
        Results(path, 1, recorded=False)
    content = json.loads(path.read_text())
    content["made"]["code"] = "other"
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="of another code"):
        Results(path, 0, recorded=False)


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent))
    command = ["mutants", "--precision", "fp32", "--workers", "1", "--json", str(tmp_path / "r")]
    command += ["--only", "deit/dense/fp32/designed/heads exchanged"]
    monkeypatch.setattr(sys, "argv", command)
    mutants.main()
    first = capsys.readouterr().out
    assert "refused deit/dense/fp32/designed/heads exchanged" in first
    assert "| all | 1 | 1 | 1 (100.0%) | 1 | 0 | 0 | 0 |" in first
    mutants.main()
    second = capsys.readouterr().out
    assert "refused deit" not in second.split("Faults")[0]
    assert second.split("Faults")[1] == first.split("Faults")[1]


def test_a_case_tells_its_architecture(tmp_path):
    assert CASES["deit/dense"].arch is None
    assert CASES["digits/dynamic"].arch.endswith("arch.yaml")
    assert Case("init/deit_tiny", "deit_tiny").arch == "deit_tiny"
