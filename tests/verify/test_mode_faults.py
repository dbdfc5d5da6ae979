"""Faults in a token mode, in what moves the rows, and randomness: each is refused and named."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

from svit_deploy.bundle.bundle import MODEL, open_bundle
from svit_deploy.errors import ExportError
from svit_deploy.graph import packed
from svit_deploy.io.files import hash_file
from svit_deploy.methods import svit
from svit_deploy.methods.svit import SvitGraph
from svit_deploy.names import MANIFEST
from svit_deploy.verify.expected import LiveReference, StoredReference
from svit_deploy.verify.run import verify_against
from tests.verify.checks import SETTINGS, first_stage, refused

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("parity_only")]


# --- token modes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "hiding"), [("dynamic", "FAINT"), ("budget", "MASKED"), ("masked", "MASKED")]
)
def test_keys_not_hidden(broken, verify, monkeypatch, mode, hiding):
    """Pruned tokens (masked mode) or padding (dynamic, budget) are attended to."""
    monkeypatch.setattr(packed, hiding, 0.0)
    refused(verify(broken(mode=mode)), *first_stage("block 3"))


def test_padding_hidden_incompletely(broken, verify, monkeypatch):
    """A bias that is too small lets a little through."""
    monkeypatch.setattr(packed, "FAINT", -6.0)
    refused(verify(broken()), *first_stage("block 3"))


def test_keys_hidden_from_the_wrong_image(broken, verify, monkeypatch):
    def shifted(graph, visible, *hiding):
        return key_bias(graph, graph.op("Gather", visible, graph.constant([1, 2, 0])), *hiding)

    key_bias = packed.key_bias
    monkeypatch.setattr(packed, "key_bias", shifted)
    refused(verify(broken()), *first_stage("block 3"))


def test_budget_smaller_than_the_manifest_says(broken, verify, monkeypatch):
    select = svit.select_budget
    monkeypatch.setattr(
        svit,
        "select_budget",
        lambda *given, **most: select(*given[:-1], min(given[-1], 120), **most),
    )
    refused(verify(broken(mode="budget")), *first_stage("block 3"))


def test_budget_larger_than_the_manifest_says(broken, verify, monkeypatch):
    select = svit.select_budget
    monkeypatch.setattr(
        svit, "select_budget", lambda *given, **most: select(*given[:-1], given[-1] + 1, **most)
    )
    refused(verify(broken(mode="budget", budget="30")), "keep mask follows the margins", "gate 0")


def test_spare_rows_of_a_budget_not_restored(broken, verify, graph_fault):
    """Rows past the kept count are computed and written back all the same."""

    def write_everything(model):
        for node in model.graph.node:
            if node.op_type == "ScatterND":
                where = next(n for n in model.graph.node if node.input[2] in n.output)
                node.input[2] = where.input[1]

    graph_fault(write_everything)
    refused(verify(broken(mode="budget")), *first_stage("block 3"))


def test_overflow_miscounted(broken, verify, graph_fault):
    def count_too_many(model):
        for node in model.graph.node:
            if "overflow" in node.output:
                node.output[0] = "right"
        one = onnx.numpy_helper.from_array(np.int64(1), "one")
        model.graph.initializer.append(one)
        model.graph.node.append(onnx.helper.make_node("Add", ["right", "one"], ["overflow"]))

    graph_fault(count_too_many)
    refused(verify(broken(mode="budget")), "overflow counts what the budget cuts", "gate 0")


# --- randomness --------------------------------------------------------------------------------


def test_the_exporter_refuses_gumbel_noise(broken, monkeypatch):
    margin = SvitGraph.margin

    def sampled(self, name):
        clean = margin(self, name)
        noise = self.graph.op("RandomUniformLike", clean)
        return self.graph.op("Add", clean, self.graph.op("Neg", self.graph.op("Log", noise)))

    monkeypatch.setattr(SvitGraph, "margin", sampled)
    with pytest.raises(ExportError, match=r"draws random numbers in block_10/gate/RandomUniform"):
        broken()


def test_noise_put_into_the_graph_after_the_export(golden, broken):
    folder = broken().path
    model = onnx.load(folder / MODEL)
    margin = next(node for node in model.graph.node if "gate_2.margin" in node.output)
    margin.output[0] = "clean"
    noise = onnx.helper.make_node("RandomUniformLike", ["clean"], ["noise"], high=1e-3, low=-1e-3)
    add = onnx.helper.make_node("Add", ["clean", "noise"], ["gate_2.margin"])
    at = list(model.graph.node).index(margin) + 1
    model.graph.node.insert(at, noise)
    model.graph.node.insert(at + 1, add)
    onnx.save(model, folder / MODEL)
    manifest = json.loads((folder / MANIFEST).read_text())
    size = (folder / MODEL).stat().st_size
    manifest["files"][MODEL] = {"size_bytes": size, "sha256": hash_file(folder / MODEL)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    bundle = open_bundle(folder)
    for reference in (StoredReference(bundle), LiveReference(bundle, golden("svit_cls").model)):
        report = verify_against(bundle, reference, SETTINGS)
        refused(report, "no random operator", "the graph samples in noise (RandomUniformLike)")
