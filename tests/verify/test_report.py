"""What a verification saw, as JSON and on a terminal."""

from __future__ import annotations

import io
import json
import re
from dataclasses import asdict

import numpy as np
import pytest
from rich.console import Console

pytest.importorskip("torch")

from svit_deploy.tasks.limits import LIMITS
from svit_deploy.verify.report import Check, Stage

pytestmark = pytest.mark.usefixtures("parity_only")


def test_report_as_json(export, verify):
    report = verify(export("svit_cls", "dynamic"))
    content = json.loads(json.dumps(report.to_dict(["svit-deploy", "verify"]), allow_nan=False))
    assert content["status"] == {"verdict": "pass", "reasons": []}
    assert content["command"] == ["svit-deploy", "verify"]
    assert content["settings"]["limits"] == asdict(LIMITS["fp32"])
    assert content["settings"]["engine"]["threads"] == 1
    results = content["results"]
    assert len(results["stages"]) == 23
    assert {stage["name"]: stage["value"] for stage in results["stages"][:5]} == {
        "embedding": "embedding",
        "block 0": "block_0.out",
        "block 1": "block_1.out",
        "block 2": "block_2.out",
        "gate 0": "gate_0.margin",
    }
    assert results["logits_error"] < results["stages"][-1]["limit"]
    assert [gate["agreement"] for gate in results["gates"]] == [1.0] * 9
    assert all(gate["margin_drift"] < gate["rounding"] for gate in results["gates"])


def test_a_failed_report_as_json_and_on_a_terminal(export, verify):
    report = verify(export("svit_cls", "dynamic"))
    report.stages.append(Stage("head", "logits", np.inf, 1e-5))
    report.checks.append(Check("no random operator", False, "the graph samples in [bold]x[/] [/]"))
    content = report.to_dict()
    json.dumps(content, allow_nan=False)
    assert content["results"]["stages"][-1]["error"] is None
    assert content["status"]["verdict"] == "fail"
    assert content["status"]["reasons"] == [
        "no random operator: the graph samples in [bold]x[/] [/]"
    ]
    output = io.StringIO()
    report.render(Console(file=output, width=160))
    text = output.getvalue()
    assert "the graph samples in [bold]x[/] [/]" in text
    assert text.splitlines()[-1].startswith("FAIL bundle: no random operator")
    for gate in report.gates:
        assert re.search(rf"{gate.gate} +{gate.block} +100.0000% +0 +0 +{gate.keep:.3f}", text)
