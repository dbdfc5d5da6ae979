"""The first stage that a verification found wrong, and what should have come out of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from svit_deploy import names
from svit_deploy.bundle import Bundle
from svit_deploy.errors import InputError
from svit_deploy.io.files import reading
from svit_deploy.model.config import TokenMode
from svit_deploy.model.result import Result, stack

VERIFY_AGAIN = "run `svit-deploy verify --json FILE` again, or leave --report out"


@dataclass(frozen=True)
class Found:
    """What a verification says.

    Attributes:
        passed: its verdict.
        stage: the first stage that differs, as the report calls it; empty where none does.
        value: the graph's value that the stage computes.
    """

    passed: bool
    stage: str = ""
    value: str = ""


def read_report(path: Path, bundle: Bundle) -> Found:
    """What a JSON report of `verify` says.

    Raises:
        InputError: unreadable, no such report, or of another bundle.
    """
    with reading(path):
        text = path.read_bytes()
    try:
        report = json.loads(text)
        (told,) = report["inputs"]
        sha256, found = told["model_sha256"], found_in(report)
    except (ValueError, LookupError, TypeError, RecursionError):
        raise InputError(f"{path} is no report of this version's verify", VERIFY_AGAIN) from None
    if sha256 != bundle.model_sha256:
        raise InputError(f"{path} is of another bundle than {bundle.name}", VERIFY_AGAIN)
    return found


def found_in(report: Mapping[str, Any]) -> Found:
    """The same of a report's content (`VerifyReport.to_dict`).

    A half-precision graph's stages are looked at in float32 first, as `verify` lists them.
    """
    passed, results = report["status"]["verdict"] == "pass", report["results"]
    for stage in [*results["stages_in_float32"], *results["stages"]]:
        error, limit = stage["error"], stage["limit"]
        if error is None or not error <= limit:  # None: NaN or infinity
            return Found(passed, str(stage["name"]), str(stage["value"]))
    return Found(passed)


def expected_values(bundle: Bundle, result: Result, wanted: Iterable[str]) -> dict[str, np.ndarray]:
    """What the reference gives for values of the graph, in the graph's shapes, as far as it can.

    A stage's tokens `[n, T, C]` are the graph's rows `[n * T, C]`. Where tokens are gone the graph
    either has no rows of them, or rows that nobody reads and no reference knows: left out.
    """
    known: dict[str, Any] = dict(result.values)
    if bundle.has_gate_outputs:
        selected = result.selected
        known |= {names.KEEP_MASK: selected.keep_mask, names.MARGIN: selected.margin}
        known |= {names.SOURCE: selected.source}
    if not bundle.task.inner():  # else an image's outputs are only parts of the graph's
        known |= {name: stack(result.outputs, name) for name in bundle.task.outputs()}
    packs = bundle.family.method.removes and bundle.mode is TokenMode.DYNAMIC
    for name, value in result.stages.items():
        if name not in bundle.stages:  # a map
            known[name] = value
            continue
        there = ~np.isnan(value[..., 0])
        if packs or there.all():
            known[name] = value[there]
    return {name: known[name] for name in wanted if known.get(name) is not None}
