"""The tutorials' own code, built from their text, exported and verified."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy import api
from svit_deploy.backbones.vit import Vit
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.methods.families import FAMILIES, Family
from svit_deploy.tasks import TASKS
from tests.told import SETTINGS, checkpoint_of, golden_file

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs" / "contributing"


def run_page(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of a page's Python blocks, in their order."""
    text = (DOCS / name).read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.S | re.M))
    module = types.ModuleType(name.removesuffix(".md"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, name, "exec"), module.__dict__)
    return module


def images(path: Path) -> Path:
    with np.load(golden_file("deit", "io.npz")) as io:
        np.savez(path / "images.npz", images=io["input"])
    return path / "images.npz"


def test_add_a_method(monkeypatch, tmp_path):
    page = run_page("add_a_method.md", monkeypatch)
    deit = FAMILIES["deit"]
    row = Family(
        "normpruning",
        "norm pruning",
        deit.backbone,
        page.NormPruning(),
        eps=deit.eps,
        head=deit.head,
        keys_of="deit",
    )
    monkeypatch.setitem(FAMILIES, row.name, row)
    from svit_deploy.loading import arch

    monkeypatch.setattr(arch, "_SETTINGS", arch._settings_fields())
    told = {"family": "normpruning", "keep_rate": "0.5", "prune_blocks": "4,8", "num_heads": "6"}
    checkpoint = checkpoint_of("deit")
    for mode in ("static", "dense"):
        bundle = api.export(
            checkpoint,
            tmp_path / mode,
            tokens=mode,
            overrides=told,
            calibration=images(tmp_path),
        )
        report = api.verify(bundle.path, against=checkpoint, overrides=told, threads=1)
        assert report.passed, report.verdict
        assert api.verify(bundle.path, threads=1).passed
    with np.load(images(tmp_path)) as given:
        pixels = given["images"]
    with OnnxRuntimeEngine(tmp_path / "static" / "model.onnx", threads=1) as engine:
        kept = engine.run({"images": pixels})["keep_mask"].sum(axis=2)
    patches = bundle.config.num_patches
    expected = [1 + round(0.5 * patches), 1 + round(0.5 * round(0.5 * patches))]
    assert (kept == expected).all()


def test_add_a_task(monkeypatch, tmp_path):
    page = run_page("add_a_task.md", monkeypatch)
    monkeypatch.setitem(TASKS, "embed", page.Embed())
    monkeypatch.setattr(Vit, "tasks", ("classify", "embed"))
    told = SETTINGS["svit_cls"]
    checkpoint = checkpoint_of("svit_cls")
    bundle = api.export(checkpoint, tmp_path / "out", task="embed", overrides=told)
    assert bundle.task.name == "embed"
    report = api.verify(bundle.path, against=checkpoint, overrides=told, threads=1)
    assert report.passed, report.verdict
    assert "vectors" in [check.name for check in report.checks]
    assert api.verify(bundle.path, threads=1).passed
