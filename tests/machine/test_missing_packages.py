"""Which commands work without PyTorch, ONNX Runtime or matplotlib, and what the others say.

One process for each missing package runs many command lines, as importing takes most of the time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from svit_deploy import api
from svit_deploy.errors import CapabilityError

pytest.importorskip("torch")

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
CHECKPOINT, ARCH, HELDOUT = (DIGITS / n for n in ("svit_digits.pth", "arch.yaml", "heldout.npz"))
QUICK = ("--warmup", "0", "--duration", "0", "--min-samples", "1", "--threads", "1")
IMAGES = ("--images", HELDOUT, "--max-images", "4")
# As if they were not installed: `import` fails as it does then.
RUN_WITHOUT = """
import contextlib, io, json, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from svit_deploy.cli import main

results = []
for line in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        with contextlib.redirect_stderr(io.StringIO()) as err:
            code = main(["-q", *line])
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code and the text of both streams."""

    code: int
    out: str
    err: str

    def check_refusal(self, *words: str) -> None:
        assert (self.code, self.out) == (4, ""), self
        assert self.err.startswith("error: ") and self.err.count("\n") == 1
        for word in words:
            assert word in self.err


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles in token modes dense and dynamic, and weights of both containers."""
    folder = tmp_path_factory.mktemp("files")
    for mode in ("dense", "dynamic"):
        api.export(CHECKPOINT, folder / mode, arch=str(ARCH), tokens=mode)
    api.init("deit_tiny", folder / "deit.safetensors")
    return folder


def run_without(packages: str, *lines: tuple[Any, ...]) -> list[Result]:
    """Runs command lines, one after the other, where packages cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_WITHOUT, packages],
        input=json.dumps([[str(part) for part in line] for line in lines]),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [Result(*result) for result in json.loads(done.stdout)]


@pytest.mark.slow
def test_without_ray(files, tmp_path):
    asked = ("--ray", "local")
    lines = [
        ("predict", files / "dynamic", HELDOUT, "-o", tmp_path / "a.csv", *asked),
        ("evaluate", files / "dynamic", *IMAGES, *asked),
        ("verify", files / "dynamic", "--against", CHECKPOINT, "--arch", ARCH, *asked),
    ]
    works = ("predict", files / "dynamic", HELDOUT, "--max-images", "2", "-o", tmp_path / "b.csv")
    *refused, worked = run_without("ray", *lines, works)
    for line, result in zip(lines, refused, strict=True):
        result.check_refusal(line[0], "Ray", "not installed", "pip install 'svit-deploy[ray]'")
    assert worked.code == 0
    (dry,) = run_without("ray", (*lines[0], "--dry-run"))
    assert dry.code == 4 and "missing" in dry.out and "svit-deploy[ray]" in dry.out
    assert [entry.name for entry in tmp_path.iterdir()] == ["b.csv"]


@pytest.mark.slow
def test_without_torch(files, tmp_path):
    report, out = tmp_path / "verify.json", tmp_path / "out"
    labelled, evaluated = tmp_path / "labelled.json", tmp_path / "evaluated.json"
    works = [
        ("--help",),
        ("verify", files / "dynamic", "--json", report),
        ("verify", files / "dense"),
        ("bench", files / "dense", files / "dynamic", *QUICK),
        ("bench", files / "dense" / "model.onnx", *IMAGES, *QUICK),
        ("inspect", files / "dynamic"),
        ("inspect", files / "dynamic" / "model.onnx"),
        ("inspect", files / "deit.safetensors"),
        ("visualize", files / "dynamic", *IMAGES, "-o", tmp_path / "maps"),
        ("verify", files / "dynamic", *IMAGES, "--json", labelled),
        ("evaluate", files / "dynamic", *IMAGES, "--json", evaluated),
        ("predict", files / "dynamic", HELDOUT, "--max-images", "4", "-o", tmp_path / "a.csv"),
        ("init", "deit_tiny", "-o", tmp_path / "again.safetensors"),
        ("doctor",),
    ]
    refused = [
        ("export", CHECKPOINT, "--arch", ARCH, "-o", out),
        ("export", files / "deit.safetensors", "--tokens", "dense", "-o", out),
        ("verify", files / "dynamic", "--against", CHECKPOINT),
        ("verify", files / "dense", "--against", files / "deit.safetensors"),
        ("inspect", CHECKPOINT),
        ("init", "svit_s", "-o", tmp_path / "x.safetensors"),
        ("init", "deit_tiny", "-o", tmp_path / "x.pth"),
        ("quickstart", "-o", tmp_path / "quick"),
    ]
    results = run_without("torch", *works, *refused)
    for line, result in zip(works, results, strict=False):
        assert (result.code, result.err) == (0, ""), line
    assert json.loads(report.read_text())["status"]["verdict"] == "pass"
    for result in results[len(works) :]:
        result.check_refusal("PyTorch", "not installed", "pip install 'svit-deploy[torch]'")
    assert "leave --against out" in results[len(works) + 2].err
    results = json.loads(evaluated.read_text())["results"]
    assert results["measures"]["top1_accuracy"]["value"] == 1
    found = json.loads(labelled.read_text())["results"]["evaluation"]
    assert found["measures"] == results["measures"]
    left = sorted(entry.name for entry in tmp_path.iterdir())
    assert left == [
        *("a.csv", "again.safetensors", "evaluated.json", "labelled.json", "maps", "verify.json")
    ]


@pytest.mark.slow
def test_without_onnxruntime(files, tmp_path):
    works = [
        ("export", CHECKPOINT, "--arch", ARCH, "-o", tmp_path / "out"),
        ("inspect", files / "dynamic"),
        ("init", "deit_tiny", "-o", tmp_path / "x.safetensors"),
        ("doctor",),
    ]
    refused = [
        ("verify", files / "dynamic"),
        ("bench", files / "dense", files / "dynamic", *QUICK),
        ("visualize", files / "dynamic", *IMAGES, "-o", tmp_path / "maps"),
        ("evaluate", files / "dynamic", *IMAGES),
        ("predict", files / "dynamic", HELDOUT, "-o", tmp_path / "a.csv"),
        # Told before any work.
        ("verify", files / "dynamic", "--against", tmp_path / "nobody_reads_this.pth"),
        ("quickstart", "-o", tmp_path / "quick"),
    ]
    results = run_without("onnxruntime", *works, *refused)
    for line, result in zip(works, results, strict=False):
        assert (result.code, result.err) == (0, ""), line
    for result in results[len(works) :]:
        result.check_refusal("ONNX Runtime", "pip install 'svit-deploy[cpu]'", "[gpu]")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "x.safetensors"]


@pytest.mark.slow
def test_without_matplotlib(files, tmp_path):
    plot = tmp_path / "sweep.png"
    works, refused = run_without(
        "matplotlib",
        ("bench", files / "dynamic", *QUICK),
        # It would take half an hour to find out at the end.
        ("bench", files / "dynamic", "--duration", "1800", "--sweep-tokens", plot),
    )
    assert (works.code, works.err) == (0, "")
    refused.check_refusal("matplotlib", "pip install 'svit-deploy[plot]'")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_package_itself_needs_none_of_them():
    code = "import svit_deploy.api, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "onnxruntime", "matplotlib"} & set(done.stdout.split())


@pytest.mark.parametrize(
    "error", [ImportError("cannot load"), OSError("libtorch.so: no such file")]
)
def test_broken_torch(error, monkeypatch):
    import importlib

    from svit_deploy.errors import CapabilityError
    from svit_deploy.machine.packages import require_torch

    def fail(name: str) -> None:
        assert name == "torch"
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(CapabilityError, match="broken"):
        require_torch("export", "something")


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_tensorrt_is_told_before_any_work(tmp_path, monkeypatch, target):
    module = target.replace("-", "_")
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CapabilityError, match=f"{module} cannot be imported"):
        api.export(tmp_path / "nobody_reads_this.pth", tmp_path / "out", target=target)
