"""The same bytes every time; complete or absent, whatever happens in between."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy.bundle.bundle import open_bundle
from svit_deploy.errors import ExportError, InputError
from svit_deploy.export import pipeline
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.methods.families import FAMILIES
from svit_deploy.model.config import TokenMode

ROOT = Path(__file__).parents[2]
DENSE = ExportSettings(tokens=TokenMode.DENSE)

# --- the same bytes every time -----------------------------------------------------------------

EXPORT_SCRIPT = """
import sys
from pathlib import Path
from svit_deploy.export.pipeline import export_source
from svit_deploy.export.settings import ExportSettings
from svit_deploy.methods.families import FAMILIES
from svit_deploy.model.config import TokenMode
from tests.told import SETTINGS
checkpoint, *outputs = map(Path, sys.argv[1:])
modes = FAMILIES['svit'].modes
for mode, output in zip(modes, outputs, strict=True):
    budget = "0.5" if mode is TokenMode.BUDGET else None
    settings = ExportSettings(tokens=mode, budget=budget, overrides=SETTINGS["svit_cls"])
    export_source(checkpoint, output, settings)
"""


def python(script, *arguments, **variables):
    """Starts another interpreter on a script."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_second_export_has_the_same_bytes(golden, tmp_path):
    """In this process, and in another that hashes strings differently."""
    model, modes = golden("svit_cls").model, FAMILIES["svit"].modes

    def files(name, mode):
        budget = "0.5" if mode is TokenMode.BUDGET else None
        settings = ExportSettings(tokens=mode, budget=budget)
        return export_model(model, tmp_path / name, settings).manifest["files"]

    outputs = [tmp_path / f"other-{mode.value}" for mode in modes]
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    other = python(EXPORT_SCRIPT, model.checkpoint.path, *outputs, PYTHONHASHSEED=seed)
    expected = [files(mode.value, mode) for mode in modes]
    assert files("again", modes[0]) == expected[0]
    _, errors = other.communicate(timeout=240)
    assert other.returncode == 0, errors
    assert [open_bundle(output).manifest["files"] for output in outputs] == expected


# --- complete or absent ------------------------------------------------------------------------

STUCK_SCRIPT = f"""
import time
from svit_deploy.export import pipeline
pipeline.write_manifest = lambda *arguments: time.sleep(600)
{EXPORT_SCRIPT.replace("= FAMILIES['svit'].modes", "= [TokenMode.MASKED]")}
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize("force", [False, True])
def test_a_killed_export_leaves_no_bundle_and_the_next_one_cleans_up(golden, tmp_path, force):
    output = tmp_path / "bundle"
    model, settings = golden("svit_cls").model, ExportSettings(tokens=TokenMode.MASKED)
    script = STUCK_SCRIPT
    if force:
        before = export_model(model, output, ExportSettings()).manifest
        script = script.replace("output, settings)", "output, settings, force=True)")
    process = python(script, model.checkpoint.path, output)
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob(".bundle.partial-*/model.onnx")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    process.stderr.close()
    assert process.returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".bundle.partial-*"))
    if force:
        assert open_bundle(output).manifest == before
    else:
        assert not output.exists()
    bundle = export_model(model, output, settings, force=force)
    assert bundle.mode is TokenMode.MASKED
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (RuntimeError("a bug"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), ExportError),
        (InputError("broken"), InputError),
    ],
)
@pytest.mark.parametrize(
    ("where", "step"),
    [(pipeline, "build_graph"), (np, "savez_compressed"), (pipeline, "write_manifest")],
)
def test_a_failure_inside_leaves_nothing(golden, tmp_path, monkeypatch, where, step, raised, seen):
    def fail(*arguments, **named):
        raise raised

    monkeypatch.setattr(where, step, fail)
    found = golden("deit")
    with pytest.raises(seen):
        settings = replace(DENSE, calibration=found.images)
        export_model(found.model, tmp_path / "a" / "bundle", settings)
    assert not list((tmp_path / "a").iterdir())


def test_force_replaces_a_bundle_and_nothing_else(golden, tmp_path, monkeypatch):
    model, output = golden("deit").model, tmp_path / "bundle"
    output.mkdir()  # an empty folder is in nobody's way
    first = export_model(model, output, DENSE)
    with pytest.raises(ExportError, match=r"holds a bundle already.*--force"):
        export_model(model, output, DENSE)
    assert open_bundle(output).manifest == first.manifest
    second = export_model(model, output, replace(DENSE, opset=21), force=True)
    assert second.manifest["opset"] == 21
    assert list(tmp_path.iterdir()) == [output]

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "build_graph", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_model(model, output, DENSE, force=True)
    assert open_bundle(output).manifest == second.manifest

    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter-1.txt").write_text("not to be lost")
    for force in (False, True):
        with pytest.raises(ExportError, match="is not a"):
            export_model(model, foreign, DENSE, force=force)
    assert (foreign / "chapter-1.txt").read_text() == "not to be lost"
