"""The report of a benchmark: JSON, terminal, picture."""

import csv
import io
import json
import sys

import numpy as np
import pytest
from rich.console import Console

from svit_deploy import forms
from svit_deploy.bench.plots import plot_sweep
from svit_deploy.bench.printing import printed, render
from svit_deploy.errors import CapabilityError, UsageError
from tests.bench.conftest import World

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report():
    world = World()
    return world.bench(
        world.dense(),
        world.pruned(),
        batches=(1, 4),
        worst_case=True,
        sweep=True,
        min_samples=70,
        fail_above={"p99": 12},
    )


def test_report_is_strict_json(report):
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["schema_version"] == 1
    assert plain["settings"]["fail_above"] == {"p99_ms": 12}
    assert plain["environment"]["packages"]["numpy"] == np.__version__
    result = plain["results"][1]
    assert (result["label"], result["batch"]) == ("pruned", 1)
    assert result["latency"]["p99_ms"] is None
    assert result["speedup"]["verdict"] in ("faster", "slower", "no measurable difference")
    assert "samples_ms" not in result


def test_rendering_fits_80_columns_of_cp1252(report):
    file = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", errors="strict")
    render(report, Console(file=file, width=80))
    file.flush()
    text = file.buffer.getvalue().decode("cp1252")
    assert max(map(len, text.splitlines())) <= 80
    for expected in ("pruned", "14.00", "n/a", "of 10", "break-even", "FAILED", "95 % interval"):
        assert expected in text


def test_forms_tell_the_same(report):
    def form(name):
        file = io.StringIO()
        forms.render(printed(report), name, Console(file=file, width=80))
        return file.getvalue()

    rows = list(csv.DictReader(io.StringIO(form("csv"))))
    results = [one for one in report.results if (one.label, one.batch) == ("pruned", 4)]
    found = {
        row["measure"]: row for row in rows if (row["target"], row["batch"]) == ("pruned", "4")
    }
    assert float(found["p50_ms"]["value"]) == results[0].latency.p50_ms
    speedup = results[0].speedup
    told = [float(found["speedup"][key]) for key in ("value", "low", "high")]
    assert told == [speedup.ratio, speedup.low, speedup.high]
    assert "p99_ms" not in found
    assert not any(row["measure"] == "speedup" for row in rows if row["target"] == "dense")
    markdown, table = form("markdown"), form("table")
    assert "| latency, ms | p50 | p90 |" in markdown
    assert "| asked for | kept | p50, ms | fit, ms |" in markdown
    assert markdown.count("- FAILED: ") == 2
    for part in printed(report).parts:
        for row in part.rows:
            assert f"| {' | '.join(row)} |" in markdown
            assert all(cell in table for cell in row)
        for line in part.lines:
            assert f"- {line}\n" in markdown
    assert form("json") == ""


def test_rendering_takes_labels_literally(world):
    file = io.StringIO()
    render(world.bench(world.dense(label="[bold]x")), Console(file=file, width=80))
    table = file.getvalue().partition("p99 n/a")[0]
    assert "[bold]x" in table


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_sweep_is_drawn(report, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"sweep{suffix}"
    plot_sweep(report, path)
    assert path.stat().st_size > 1000


def test_sweep_that_cannot_be_drawn(world, report, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="token mode dynamic"):
        plot_sweep(world.bench(world.dense()), tmp_path / "sweep.png")
    with pytest.raises(UsageError, match=r"name a \.png"):
        plot_sweep(report, tmp_path / "sweep.docx")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a folder"):
        plot_sweep(report, tmp_path / "file" / "sweep.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(CapabilityError, match=r"svit-deploy\[plot\]"):
        plot_sweep(report, tmp_path / "sweep.png")
