"""ONNX Runtime's trace: every microsecond of a run is some operator's, or between them."""

from __future__ import annotations

import json
import math

import pytest

from svit_deploy.engines.base import NodeTime
from svit_deploy.engines.onnxruntime_profile import average_run, read_runs
from svit_deploy.graph.parts import BETWEEN


def event(cat, name, ts, dur, op=""):
    return {"cat": cat, "name": name, "ts": ts, "dur": dur, "args": {"op_name": op}}


def node(name, op, ts, dur):
    return event("Node", f"{name}_kernel_time", ts, dur, op)


TRACE = [
    event("Session", "session_initialization", 0, 90),
    node("a", "Gemm", 101, 20),
    node("loop", "Loop", 125, 60),
    node("inner", "Add", 130, 10),  # called by the loop
    node("inner", "Add", 150, 15),
    node("b", "Gather", 190, 5),
    event("Session", "SequentialExecutor::Execute", 100, 98),
    event("Session", "model_run", 100, 100),
    event("Session", "model_run", 300, 40),
    node("a", "Gemm", 301, 30),
    event("Node", "a_fence_before", 301, 1, "Gemm"),
]


def test_runs_add_up_to_what_the_profiler_tells():
    first, second = read_runs(json.dumps(TRACE))
    microseconds = {key: round(seconds * 1e6, 6) for key, seconds in first.items()}
    assert microseconds == {
        ("", BETWEEN): 15,
        ("a", "Gemm"): 20,
        ("loop", "Loop"): 35,
        ("inner", "Add"): 25,
        ("b", "Gather"): 5,
    }
    assert math.fsum(first.values()) == pytest.approx(100e-6)
    assert math.fsum(second.values()) == pytest.approx(40e-6)


def test_the_average_leaves_out_runs_that_were_delayed():
    runs = [{("a", "Gemm"): seconds, ("", BETWEEN): 1.0} for seconds in (90, 2, 4, 1)]
    runs[1][("b", "Add")] = 0.5
    assert average_run(runs) == [
        NodeTime(("a",), "Gemm", 3.0),
        NodeTime((), BETWEEN, 1.0),
        NodeTime(("b",), "Add", 0.25),
    ]
    assert average_run(runs[:1])[0].seconds == 90
