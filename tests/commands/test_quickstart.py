"""The whole job on the digits model, with few images and a short benchmark."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from svit_deploy.cli import main
from svit_deploy.commands import quickstart
from svit_deploy.errors import InputError

pytest.importorskip("torch")


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[[Path], tuple[int, str, str]]:
    """Runs `svit-deploy quickstart -o FOLDER` with more options."""
    few = tmp_path / "digits"
    shutil.copytree(quickstart.digits_folder(), few)
    for name in ("heldout.npz", "calibration.npz"):
        with np.load(few / name) as arrays:
            some = {key: arrays[key][:30] for key in arrays.files}
        np.savez(few / name, **some)
    short = replace(quickstart.BENCH, batches=(1,), warmup_s=0, duration_s=0, min_samples=1)
    monkeypatch.setattr(quickstart, "digits_folder", lambda: few)
    monkeypatch.setattr(quickstart, "BENCH", short)
    monkeypatch.setattr(quickstart, "PICTURES", 2)

    def run(output: Path, *options: str) -> tuple[int, str, str]:
        code = main(["-q", "quickstart", "-o", str(output), *options])
        return code, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_quickstart(run, tmp_path):
    output = tmp_path / "quick start"
    code, out, err = run(output)
    assert (code, err) == (0, "")
    assert sorted(entry.name for entry in output.iterdir()) == [
        "dense",
        "dynamic",
        "maps",
        "report.html",
    ]
    assert out.count("PASS") == 2
    assert "speed-up over dense" in out
    assert "top-1 on 30 held-out digits" in out
    assert "  dynamic  PyTorch 100.00%, exported 100.00%" in out
    code, out, err = run(output)
    assert (code, out) == (5, "")
    assert "--force" in err
    # What an interrupted run left and what the user put there is no obstacle.
    shutil.rmtree(output / "dynamic")
    (output / "notes.txt").write_text("mine")
    assert run(output, "--force")[0] == 0
    assert (output / "dynamic" / "manifest.json").is_file()
    assert (output / "notes.txt").read_text() == "mine"


def test_quickstart_leaves_files_of_others_alone(run, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    assert run(file)[0] == 5
    assert run(file, "--force")[0] == 5
    assert file.read_text() == "mine"
    taken = tmp_path / "taken"
    (taken / "dense").mkdir(parents=True)
    (taken / "dense" / "thesis.txt").write_text("mine")
    code, _, err = run(taken, "--force")
    assert code == 5
    assert "not a sound bundle" in err
    assert (taken / "dense" / "thesis.txt").read_text() == "mine"


def test_digits_are_found_in_a_checkout_or_a_package(monkeypatch, tmp_path):
    assert (quickstart.digits_folder() / "svit_digits.pth").is_file()
    monkeypatch.setattr(quickstart, "__file__", str(tmp_path / "svit_deploy" / "commands" / "x.py"))
    with pytest.raises(InputError, match="install svit-deploy again"):
        quickstart.digits_folder()
    inside = tmp_path / "svit_deploy" / "digits"
    inside.mkdir(parents=True)
    (inside / "svit_digits.pth").touch()
    assert quickstart.digits_folder() == inside
