"""The command line with other methods' checkpoints, as a user types it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from svit_deploy.cli import main
from tests.methods.conftest import stvitr_tensors
from tests.told import SETTINGS, as_options, checkpoint_of

torch = pytest.importorskip("torch")


@dataclass(frozen=True)
class Typed:
    """What comes out of what is typed."""

    tokens: str
    gates: int
    options: tuple[str, ...] = ()
    size: tuple[int, int] = (56, 56)


BACKBONE = ("--task", "backbone", "--image-size", "96x128")
DETECT = ("--task", "detect", "--image-size", "96x128")
CASCADE = ("--task", "cascade", "--image-size", "96x160")
HALF = ("--precision", "fp16")
CASES = {
    "dynamicvit": Typed("static", 3),
    "evit_fuse": Typed("static", 3),
    "evit_nofuse": Typed("static", 3),
    "evovit": Typed("static", 2),
    "ats": Typed("dynamic", 9),
    "tome": Typed("static", 12),
    "avit": Typed("dynamic", 11, size=(112, 112)),
    "avit in fp16": Typed("dynamic", 11, HALF, (112, 112)),
    "stvitr": Typed("static", 0, size=(224, 224)),
    "lvvit": Typed("dense", 0, size=(112, 112)),
    "lvvit in fp16": Typed("dense", 0, HALF, (112, 112)),
    "dynamicvit_lvvit": Typed("static", 3, size=(112, 112)),
    "dynamicvit_lvvit in fp16": Typed("static", 3, HALF, (112, 112)),
    "evovit_mask_rcnn": Typed("static", 8, DETECT, (90, 120)),
    "evovit_mask_rcnn in fp16": Typed("static", 8, DETECT + HALF, (90, 120)),
    "dynamicvit_swin": Typed("static", 3, size=(64, 64)),
    "dynamicvit_swin in fp16": Typed("static", 3, HALF, (64, 64)),
    "dynamicvit_convnext": Typed("static", 3, size=(128, 128)),
    "dynamicvit_convnext in fp16": Typed("static", 3, HALF, (128, 128)),
    "dynamicvit_convnext in bf16": Typed("static", 3, ("--precision", "bf16"), (128, 128)),
    "stvitr_cascade": Typed("static", 0, CASCADE, (90, 155)),
    "swin_cascade": Typed("dense", 0, CASCADE, (90, 155)),
    "swin_cascade in fp16": Typed("dense", 0, CASCADE + HALF, (90, 155)),
    "evovit_adapter": Typed("static", 8, BACKBONE, (90, 128)),
    "evovit_adapter in fp16": Typed("static", 8, BACKBONE + HALF, (90, 128)),
}


def noise(path: Path, size: tuple[int, int]) -> Path:
    """Two pictures in a file."""
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_from_the_container_to_a_verified_bundle(tmp_path, capsys, case):
    typed, name = CASES[case], case.split()[0]
    checkpoint, told = str(checkpoint_of(name)), as_options(SETTINGS[name])
    bundle = str(tmp_path / "out")
    assert main(["export", checkpoint, "-o", bundle, *told, *typed.options]) == 0
    assert f"token mode {typed.tokens}" in capsys.readouterr().out
    images = noise(tmp_path / "images.npz", typed.size)
    report = tmp_path / "report.json"
    arguments = ["verify", bundle, "--against", checkpoint, *told, "--images", str(images)]
    assert main([*arguments, "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["status"]["verdict"] == "pass"
    assert len(found["results"]["gates"]) == typed.gates
    assert main(["inspect", bundle]) == 0
    maps = ["visualize", bundle, "--images", str(images), "-o", str(tmp_path / "maps")]
    assert main(maps) == (0 if typed.gates else 3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_stvitr_with_all_that_its_configuration_has(tmp_path, capsys, precision):
    """As the training script saves it: nothing needs to be told or changed."""
    content = {
        "model": {k: torch.from_numpy(v) for k, v in stvitr_tensors("two_units").items()},
        "optimizer": {},
        "config": {
            "MODEL": {"NAME": "stvitr"},
            **dict.fromkeys(("SHORTCUT", "RELATIVE_POS", "USE_GLOBAL", "USE_CONV_POS"), True),
        },
    }
    checkpoint, bundle = str(tmp_path / "x.pth"), str(tmp_path / "out")
    torch.save(content, checkpoint)
    assert main(["export", checkpoint, "-o", bundle, "--precision", precision]) == 0
    images = ("--images", str(noise(tmp_path / "images.npz", (224, 224))))
    assert main(["verify", bundle, "--against", checkpoint, *images]) == 0
    assert main(["inspect", checkpoint]) == 0
    told = capsys.readouterr().out
    assert "relative_pos   true                 weights" in told
    assert "shortcut       true                 training arguments" in told


def test_which_method_is_asked_for(tmp_path, capsys):
    checkpoint = str(checkpoint_of("evit_fuse"))
    options = ["--set", "num_heads=6"]
    assert main(["export", checkpoint, "-o", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert "deit, evit, ats, avit, tome, mergence all have such weights" in error
    assert not (tmp_path / "out").exists()
