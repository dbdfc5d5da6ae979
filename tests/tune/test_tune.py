"""The digits model end to end: what is chosen, what is told, and what a kill leaves to do."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from svit_deploy.bundle import open_bundle
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.loading.load import load_model
from svit_deploy.pages.tune import by_speed, rows_of
from svit_deploy.tune.run import run_of
from svit_deploy.tune.settings import TuneSettings
from svit_deploy.tune.work import STEPS

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
CHECKPOINT, ARCH = DIGITS / "svit_digits.pth", DIGITS / "arch.yaml"
FEW = (
    *("--engines", "onnxruntime", "--precisions", "fp32", "--quick", "--threads", "1"),
    *("--verify-images", "8", "--max-images", "120", "--max-accuracy-drop", "100%"),
)


def test_what_a_run_depends_on(monkeypatch):
    model = load_model(CHECKPOINT, arch=str(ARCH))
    settings = TuneSettings(images=DIGITS / "heldout.npz")
    before = run_of(model, settings)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert run_of(model, replace(settings, modes=("dense",), quick=True)) == before
    assert run_of(model, replace(settings, max_images=3)) != before


def tune(images: Path, *more: Any) -> list[str]:
    args = ["tune", CHECKPOINT, "--arch", ARCH, "--images", images, *FEW, *more]
    return [str(arg) for arg in args]


@pytest.fixture
def at(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_best_is_written_with_its_commands(at, cli):
    words = ("--modes", "dynamic,dense", "-o", "out", "--json", "tune.json", "--html", "tune.html")
    result = cli(*tune(DIGITS / "heldout.npz", *words))
    assert result.code == 0, result.err
    assert not (at / "out.tune").exists()
    report = json.loads((at / "tune.json").read_text())
    (chosen,) = [point for point in report["points"] if point["chosen"]]
    assert chosen["ms_per_image"] == min(point["ms_per_image"] for point in report["points"])
    assert report["quality"] | {"base": 0} == {
        "measure": "top1_accuracy",
        "told_by": "labels of the images' own file",
        "images": 120,
        "base": 0,
    }
    mode = chosen["candidate"].partition("-")[0]
    bundle = open_bundle(at / "out")
    assert bundle.mode.value == mode
    export, verify, bench = (shlex.split(line) for line in report["winner"]["commands"])
    assert bundle.manifest["command"][:5] == ["svit-deploy", "export", CHECKPOINT.name, "-o", "out"]
    for candidate in report["candidates"]:
        assert candidate["verified"]["passed"] and candidate["export"].startswith("svit-deploy")
    again = cli(*[word if word != "out" else "again" for word in export[1:]])
    assert again.code == 0, again.err
    assert open_bundle(at / "again").model_sha256 == bundle.model_sha256
    assert cli(*verify[1:], "--max-images", "4").code == 0
    assert cli(*bench[1:], "--quick").code == 0
    check_page(report, (at / "tune.html").read_text())
    assert all(cell in result.out for row in rows_of(report) for cell in row if cell)


def check_page(report: dict[str, Any], page: str) -> None:
    """What the page shows is the record, which is inside for download."""
    assert page.count("<svg") == 1
    inside = re.search(r"data:application/json;base64,([^\"]+)", page)
    assert inside is not None
    assert json.loads(base64.b64decode(inside[1])) == report
    for row in rows_of(report):
        assert all(f">{cell}</td>" in page for cell in row if cell)
    assert page.count('class="s2 dot"') == 1  # the chosen one
    front = [point for point in by_speed(report) if point["pareto"]]
    line = re.search(r'polyline class="l0" points="([^"]+)"', page)
    assert line is not None and len(line[1].split()) == len(front)


def test_without_labels_the_answers_of_the_base_count(at, cli, digit_pictures):
    pictures = [str(path) for path in sorted(digit_pictures.rglob("*.png"))[:16]]
    (at / "val.txt").write_text("\n".join(pictures))
    result = cli(*tune(at / "val.txt", "--modes", "dense", "-o", "out", "--json", "-"))
    assert result.code == 0, result.err
    report = json.loads(result.out)
    quality = report["quality"]
    assert (quality["measure"], quality["base"], quality["images"]) == ("agreement", 1.0, 16)
    assert "dynamic-fp32@onnxruntime" in quality["told_by"]
    base, dense = report["points"]
    assert base["refused"] == "not among those asked for" and dense["chosen"]


def test_limits_that_nothing_holds(at, cli):
    """What is done stays, and is not done again with other limits."""
    words = tune(DIGITS / "heldout.npz", "--modes", "dynamic", "-o", "out")
    result = cli(*words, "--latency-budget", "0.001ms", "--json", "tune.json")
    assert result.code == 7
    said = "nothing that passes holds the limits: dynamic-fp32@onnxruntime, 1 thread, batch 1"
    assert f"error: {said} comes nearest with a p50 of " in result.err
    assert json.loads((at / "tune.json").read_text())["status"]["verdict"] == "failed"
    assert not (at / "out").exists()
    steps = (at / "out.tune" / STEPS).read_bytes()
    refused = cli(*words, "--max-images", "50")
    assert refused.code == 5 and "of another run" in refused.err
    again = cli(*words, "--keep")
    assert again.code == 0, again.err
    assert (at / "out.tune" / STEPS).read_bytes() == steps
    assert open_bundle(at / "out").mode.value == "dynamic"


def test_a_broken_engine_is_dropped_and_a_broken_base_ends_it(at, cli, monkeypatch):
    opened, run = OnnxRuntimeEngine.__init__, OnnxRuntimeEngine.run

    def noted(self: Any, model: Any, **options: Any) -> None:
        opened(self, model, **options)
        self.of = str(model)[:1000]

    monkeypatch.setattr(OnnxRuntimeEngine, "__init__", noted)

    def wrong(only: str) -> None:
        def changed(self: Any, feeds: Any, outputs: Any = None) -> Any:
            found = run(self, feeds, outputs)
            if only in self.of:
                found = {name: -a if name == "logits" else a for name, a in found.items()}
            return found

        monkeypatch.setattr(OnnxRuntimeEngine, "run", changed)

    words = tune(DIGITS / "heldout.npz", "--force", "-o", "out")
    wrong("masked-fp32")
    result = cli(*words, "--modes", "dynamic,masked")
    assert result.code == 0, result.err
    assert "dropped: masked-fp32@onnxruntime: FAIL" in result.out
    result = cli(*words, "--modes", "masked")
    assert result.code == 6 and "no candidate passes" in result.err
    wrong("dynamic-fp32")
    result = cli(*words, "--verify-images", "4")
    assert result.code == 6 and "not even the base" in result.err


def test_killed_and_called_again(at, cli):
    """Nothing that was done when SIGKILL came is done again."""
    words = tune(DIGITS / "heldout.npz", "--modes", "dynamic,dense", "--keep", "-o", "out")
    steps = at / "out.tune" / STEPS
    process = subprocess.Popen(
        [sys.executable, "-m", "svit_deploy", *words], stderr=subprocess.PIPE, cwd=at
    )
    try:
        end = time.monotonic() + 300
        while not (steps.is_file() and len(steps.read_bytes().splitlines()) >= 4):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = steps.read_bytes()
    whole = done[: done.rindex(b"\n") + 1]
    made = {path: path.stat().st_mtime_ns for path in at.glob("out.tune/*/manifest.json")}
    assert made and not (at / "out").exists()
    told = cli(*words, "--dry-run")
    assert told.code == 0 and "steps are done" in told.out
    result = cli(*words)
    assert result.code == 0, result.err
    assert "going on from" in result.err and "exporting dynamic-fp32" not in result.err
    assert steps.read_bytes().startswith(whole)
    keys = [json.loads(line)[0] for line in steps.read_bytes().splitlines()[1:]]
    assert len(keys) == len({*keys}) == 2 + 2 + 2 + 1  # exports, verified, evaluated, measured
    exported = {json.loads(line)[0].split()[1] for line in whole.splitlines()[1:]}
    assert all(
        path.stat().st_mtime_ns == before
        for path, before in made.items()
        if path.parent.name in exported
    )
    assert not [path for path in at.rglob("*") if ".partial-" in path.name]
