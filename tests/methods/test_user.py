"""The command line with other methods' checkpoints, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from svit_deploy.cli import main

pytest.importorskip("torch")

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
HEADS = ["--set", "num_heads=6"]
CASES = {
    "dynamicvit": ([], "static", 3),
    "evit_fuse": (["family=evit", "keep_rate=0.7", "fuse=true"], "static", 3),
    "evit_nofuse": (["fuse=false"], "static", 3),
    "evovit": ([], "static", 2),
    "ats": (["family=ats"], "dynamic", 9),
    "tome": (["family=tome", "r=13"], "static", 12),
    "stvitr": ([], "static", 0),
}


@pytest.mark.parametrize("name", CASES)
def test_from_the_container_to_a_verified_bundle(tmp_path, capsys, name):
    told, tokens, gates = CASES[name]
    checkpoint, bundle = str(GOLDEN / name / "checkpoint.pth"), str(tmp_path / "out")
    options = [] if name == "stvitr" else HEADS
    options = [*options, *(part for pair in told for part in ("--set", pair))]
    assert main(["export", checkpoint, "-o", bundle, *options]) == 0
    assert f"token mode {tokens}" in capsys.readouterr().out
    with np.load(GOLDEN / name / "io.npz") as io:
        count, _, height, width = io["input"].shape
    pictures = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
    images = tmp_path / "images.npz"
    np.savez(images, images=pictures)
    report = tmp_path / "report.json"
    arguments = ["verify", bundle, "--against", checkpoint, *options, "--images", str(images)]
    assert main([*arguments, "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["status"]["verdict"] == "pass"
    assert len(found["results"]["gates"]) == gates
    assert main(["inspect", bundle]) == 0
    maps = ["visualize", bundle, "--images", str(images), "-o", str(tmp_path / "maps")]
    assert main(maps) == (0 if gates else 3)


def test_which_method_is_asked_for(tmp_path, capsys):
    checkpoint = str(GOLDEN / "evit_fuse" / "checkpoint.pth")
    assert main(["export", checkpoint, "-o", str(tmp_path / "out"), *HEADS]) == 2
    error = capsys.readouterr().err
    assert "deit, evit, ats, tome, mergence all have such weights" in error
    assert not (tmp_path / "out").exists()
