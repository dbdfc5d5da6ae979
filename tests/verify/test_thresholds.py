"""What a graph decides with other thresholds; all and none kept are in test_behaviour.py."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

from svit_deploy.model.result import Selected
from svit_deploy.verify.decisions import against_rule
from svit_deploy.verify.expected import StoredReference
from svit_deploy.verify.run import verify_against
from tests.verify.checks import SETTINGS, check, refused


def keep_ties(model: onnx.ModelProto) -> None:
    """Gate 3 keeps a token whose margin is its threshold."""
    node = next(node for node in model.graph.node if "gate_3.decision" in node.output)
    assert node.op_type == "Greater"
    node.op_type = "GreaterOrEqual"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "settings"),
    [("dynamic", {}), ("masked", {"gate_outputs": False}), ("budget", {"budget": "20"})],
)
def test_a_tie_that_is_kept(broken, verify, graph_fault, mode, settings):
    """No image shows it: margins of images hardly ever are the threshold."""
    graph_fault(keep_ties)
    bundle = broken(mode=mode, **settings)
    for report in (verify(bundle), verify_against(bundle, StoredReference(bundle), SETTINGS)):
        refused(report, "ties are pruned", "gate 3 does not keep by margin > threshold")
        assert [found.name for found in report.checks if not found.passed] == ["ties are pruned"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dynamic", "budget"])
def test_every_gate_gets_a_tie(export, verify, mode):
    report = verify(export("svit_cls", mode))
    assert check(report, "ties are pruned").passed
    assert check(report, "ties are pruned").detail == "9 ties"


def test_what_is_against_the_rule(golden):
    found = golden("svit_cls")
    selected = Selected(found.keep_mask.copy(), found.margin)
    thresholds = np.zeros(9, np.float32)
    assert against_rule(selected, thresholds, None) == []
    selected.keep_mask[0, 4, found.margin[0, 4].argmin()] = True
    assert against_rule(selected, thresholds, None) == [4]
    thresholds[7] = 1.0
    assert against_rule(selected, thresholds, None) == [4, 7]
    assert 2 in against_rule(selected, thresholds, np.full(9, 10))
