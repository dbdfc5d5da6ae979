"""The limits: one table in the docs and in the code, for every precision."""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from pathlib import Path

from svit_deploy.graph.builder import PRECISIONS
from svit_deploy.tasks import TASKS
from svit_deploy.tasks.limits import LIMITS, Limits

ROOT = Path(__file__).parents[2]


def test_the_limits_in_the_docs_are_those_in_the_code():
    text = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
    cell = r" ([\d.e-]+) \|"
    rows = re.findall(r"^\| `(\w+)` \|" + len(PRECISIONS) * cell + "$", text, re.MULTILINE)
    table = rows[: len(fields(Limits))]  # the first of its kind
    assert [name for name, *_ in table] == [field.name for field in fields(Limits)]
    for column, precision in enumerate(PRECISIONS, 1):
        assert {row[0]: float(row[column]) for row in table} == asdict(LIMITS[precision])


def test_there_are_limits_for_every_precision_that_a_task_has():
    assert set(LIMITS) == set(PRECISIONS)
    for task in TASKS.values():
        assert {"fp32"} <= set(task.limits) <= set(PRECISIONS)
