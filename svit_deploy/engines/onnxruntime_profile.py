"""What ONNX Runtime's profiler writes: the time of each operator in each run."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from svit_deploy.engines.base import NodeTime
from svit_deploy.graph.parts import BETWEEN

WARM_UP = 2
"""Runs that are not looked at."""
_SUFFIX = "_kernel_time"
Key = tuple[str, str]
"""Name and type of an operator."""


def read_runs(text: str) -> list[dict[Key, float]]:
    """Seconds of each operator in each run, in order.

    What a run takes beside its operators is one more of type `BETWEEN`, so that all of them
    together are the time that the profiler tells of the run.

    Args:
        text: a trace in Chrome's format, with times in microseconds.
    """
    events = sorted(json.loads(text), key=lambda event: (event["ts"], -event["dur"]))
    runs: list[dict[Key, float]] = []
    ends = 0.0
    above: list[tuple[float, Key]] = []  # operators that call others, the innermost last
    for event in events:
        if event["cat"] == "Session" and event["name"] == "model_run":
            ends = event["ts"] + event["dur"]
            runs.append(defaultdict(float, {("", BETWEEN): event["dur"] / 1e6}))
            above = [(ends, ("", BETWEEN))]
        elif _is_operator(event) and runs and event["ts"] < ends:
            while len(above) > 1 and event["ts"] >= above[-1][0]:
                above.pop()
            key = event["name"].removesuffix(_SUFFIX), event["args"].get("op_name", "")
            runs[-1][key] += event["dur"] / 1e6
            runs[-1][above[-1][1]] -= event["dur"] / 1e6
            above.append((event["ts"] + event["dur"], key))
    return runs


def _is_operator(event: dict[str, Any]) -> bool:
    return event["cat"] == "Node" and event["name"].endswith(_SUFFIX)


def average_run(runs: Sequence[dict[Key, float]]) -> list[NodeTime]:
    """The mean of the middle half of the runs by their time: a busy machine delays some of them."""
    ranked = sorted(runs, key=lambda run: sum(run.values()))
    middle = ranked[len(ranked) // 4 : -(len(ranked) // 4) or None]
    keys = dict.fromkeys(key for run in middle for key in run)
    return [
        NodeTime(
            (key[0],) if key[0] else (),
            key[1],
            sum(run.get(key, 0.0) for run in middle) / len(middle),
        )
        for key in keys
    ]
