"""Where the time goes: every operator counts, targets stand side by side, timed runs stay alone."""

from __future__ import annotations

import math

import pytest

from svit_deploy.bench.layers import UNTOLD, layer_parts, summarise
from svit_deploy.bench.printing import printed
from svit_deploy.engines.base import NodeTime
from svit_deploy.graph import parts
from svit_deploy.pages.bench import bench_sections

DENSE = [
    NodeTime(("block_0/mlp/Gemm",), "Gemm", 6e-3),
    NodeTime(("block_1/mlp/Gemm",), "Gemm", 2e-3),
    NodeTime((), parts.BETWEEN, 1e-3),
    NodeTime(("unknown",), "Strange", 1e-3),
]
PRUNED = [
    NodeTime(("block_0/mlp/Gemm",), "Gemm", 3e-3),
    NodeTime(("block_0/select/NonZero",), "NonZero", 1e-3),
    NodeTime(("block_1/mlp/Gemm",), "Gemm", 2e-3),
    NodeTime((), parts.BETWEEN, 0.5e-3),
]


def test_a_summary_hides_nothing():
    layers = summarise(DENSE, 8)
    assert layers.total_ms == pytest.approx(10)
    assert math.fsum(one.ms for one in layers.times) == pytest.approx(layers.total_ms)
    assert layers.by_kind() == pytest.approx({parts.LINEAR: 8, parts.BETWEEN: 1, parts.OTHER: 1})
    assert layers.by_block() == pytest.approx(
        {"block 0": 6, "block 1": 2, parts.OTHER: 1, parts.BETWEEN: 1}
    )


def test_timed_runs_come_first_and_machines_drift_for_all(world):
    targets = (world.dense(nodes=DENSE), world.dense(label="pruned", nodes=PRUNED))
    report = world.bench(*targets, batches=(1, 4), profile_layers=True)
    names = [name for name, _, _ in world.runs]
    first = names.index("dense profiled")
    assert not any(name.endswith("profiled") for name in names[:first])
    assert [name.split()[0] for name in names[first:]] == ["dense", "pruned", "pruned", "dense"] * 4
    asked = {runs[0] for name, runs, _ in world.runs if name.endswith("profiled")}
    assert asked == {20}
    assert [one.layers.runs for one in report.results] == [80] * 4
    assert [one.layers.total_ms for one in report.results] == pytest.approx([10, 6.5] * 2)


def test_targets_stand_side_by_side(world):
    targets = (
        world.dense(nodes=DENSE),
        world.dense(label="pruned", nodes=PRUNED),
        world.dense(label="mute"),
    )
    report = world.bench(*targets, profile_layers=True)
    kinds, blocks = layer_parts(report.results)
    assert kinds.headings == ("", "dense", "pruned")
    assert kinds.rows == [
        (parts.LINEAR, "8.00 (80%)", "5.00 (-3.00)"),
        (parts.SELECTION, "0.00 (0%)", "1.00 (+1.00)"),
        (parts.OTHER, "1.00 (10%)", "0.00 (-1.00)"),
        (parts.BETWEEN, "1.00 (10%)", "0.50 (-0.50)"),
        ("total", "10.00 (100%)", "6.50 (-3.50)"),
    ]
    assert [row[0] for row in blocks.rows] == [
        "block 0", "block 1", parts.OTHER, parts.BETWEEN, "total",
    ]  # fmt: skip
    assert report.results[2].layers is None
    assert UNTOLD in report.results[2].notes
    figures = {(row[0], row[2]): row[3] for row in printed(report).figures}
    assert figures["pruned", f"{parts.SELECTION}, ms"] == pytest.approx(1)
    record = report.to_dict(raw=True)
    assert sum(one["ms"] for one in record["results"][0]["layers"]["times"]) == pytest.approx(10)
    charts = next(one for one in bench_sections(record) if one.title.startswith("Where the time"))
    assert "pruned, linear products: 5 ms" in charts.drawings[0]
    assert "block 0, pruned, gates and selection: 1 ms" in charts.drawings[1]
