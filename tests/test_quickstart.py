"""The whole job on the digits model, with a short benchmark."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from svit_deploy import quickstart
from svit_deploy.cli import main
from svit_deploy.errors import InputError

pytest.importorskip("torch")


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `svit-deploy quickstart` with little to measure."""
    short = replace(quickstart.BENCH, batches=(1,), warmup_s=0, duration_s=0, min_samples=1)
    monkeypatch.setattr(quickstart, "BENCH", short)
    monkeypatch.setattr(quickstart, "PICTURES", 2)

    def run(*args):
        code = main(["-q", "quickstart", *map(str, args)])
        return code, *capsys.readouterr()

    return run


def test_quickstart(run, tmp_path):
    output = tmp_path / "quick start"
    code, out, err = run("-o", output)
    assert (code, err) == (0, "")
    assert sorted(entry.name for entry in output.iterdir()) == ["dense", "dynamic", "maps"]
    assert out.count("PASS") == 2
    assert "speed-up over dense" in out
    assert "dense    PyTorch 98.61%, exported 98.61%" in out
    assert "dynamic  PyTorch 99.72%, exported 99.72%" in out
    code, out, err = run("-o", output)
    assert (code, out) == (5, "")
    assert "--force" in err
    # What an interrupted run left, and what the user put there, is no obstacle.
    (output / "dynamic" / "manifest.json").unlink()
    (output / "notes.txt").write_text("mine")
    code, out, err = run("-o", output, "--force")
    assert code == 5
    assert (output / "notes.txt").read_text() == "mine"


def test_quickstart_replaces_its_own_folders(run, tmp_path):
    output = tmp_path / "quickstart"
    output.mkdir()
    assert run("-o", output)[0] == 0
    (output / "notes.txt").write_text("mine")
    (output / "maps" / "mean_map.png").unlink()
    code, _, _ = run("-o", output, "--force")
    assert code == 0
    assert (output / "maps" / "mean_map.png").is_file()
    assert (output / "notes.txt").read_text() == "mine"


def test_digits_are_found_in_a_checkout_or_a_package(monkeypatch, tmp_path):
    assert (quickstart.digits_folder() / "svit_digits.pth").is_file()
    monkeypatch.setattr(quickstart, "__file__", str(tmp_path / "svit_deploy" / "quickstart.py"))
    with pytest.raises(InputError, match="install svit-deploy again"):
        quickstart.digits_folder()
    inside = tmp_path / "svit_deploy" / "digits"
    inside.mkdir(parents=True)
    (inside / "svit_digits.pth").touch()
    assert quickstart.digits_folder() == inside


def test_quickstart_refuses_a_file(run, tmp_path):
    file = tmp_path / "quickstart"
    file.touch()
    assert run("-o", file)[0] == 5
    assert Path(file).is_file()
