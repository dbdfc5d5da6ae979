"""What is assumed about a model is found, recorded, and refused where it is a guess."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy import api
from svit_deploy.cli import main
from svit_deploy.errors import InputError
from svit_deploy.loading.load import build_model, load_model
from svit_deploy.loading.presets import PRESETS
from svit_deploy.loading.published import published_settings
from svit_deploy.methods.families import FAMILIES
from svit_deploy.model.arch import Arch
from svit_deploy.model.assumption import typed
from tests.told import SETTINGS, checkpoint_of

pytestmark = pytest.mark.slow

PREPROCESS = ["mean", "std", "crop_ratio", "interpolation"]
EVOVIT = checkpoint_of("evovit")
SMALL = Arch("evovit", 6, 48, 12, 16, (96, 96), distilled=False)


def assumed(model: Any) -> list[str]:
    return [one.name for one in model.assumptions]


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("svit_cls", {}, ["gate_blocks", "gate_class_token"]),
        ("svit_cls", {"gate_blocks": "3,4,5,6,7,8,9,10,11"}, ["gate_class_token"]),
        ("evovit", {}, ["prune_ratio", "prune_blocks", "tradeoff"]),
        ("evovit", {"prune_ratio": "0.5,0.5"}, ["prune_blocks", "tradeoff"]),
        ("evit_fuse", {"family": "evit", "keep_rate": "0.7", "fuse": "true"}, ["prune_blocks"]),
        ("deit", {}, []),
    ],
)
def test_what_nobody_told_is_assumed(golden, name, given, expected):
    model = build_model(golden(name).model.checkpoint, overrides={"num_heads": "6"} | given)
    assert assumed(model) == expected + PREPROCESS


def test_a_preset_and_a_file_tell(tmp_path, golden):
    api.init("evovit_t", tmp_path / "evovit.safetensors")
    recognised = load_model(tmp_path / "evovit.safetensors")
    assert assumed(recognised) == ["prune_ratio", "prune_blocks", "tradeoff"]
    assert assumed(load_model(tmp_path / "evovit.safetensors", arch="evovit_t")) == []
    file = tmp_path / "a.yaml"
    file.write_text("family: svit\nnum_heads: 6\ngate_blocks: [3, 4, 5, 6, 7, 8, 9, 10, 11]\n")
    told = build_model(golden("svit_cls").model.checkpoint, arch=str(file))
    assert assumed(told) == ["gate_class_token", *PREPROCESS]


def published(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """A preset of the golden Evo-ViT's shape."""
    monkeypatch.setitem(PRESETS, "small", replace(SMALL, settings=settings))


def test_a_published_shape_is_assumed_listed_recorded_and_repeated(
    tmp_path, golden, capsys, monkeypatch
):
    published(monkeypatch)
    path, out = str(EVOVIT), tmp_path / "out"
    command = ["export", path, "-o", str(out), "--set", "prune_blocks=4,8"]
    main(["-q", *command])
    quiet = capsys.readouterr()
    main([*command, "--force"])
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("assumed "))
    assert quiet.out == f"{out}\n"
    assert quiet.err == f"warning: assumed {line.removeprefix('assumed').strip()}\n"
    assert line.startswith("assumed     prune_ratio=0.5,0.5 tradeoff=0.5; give --set NAME=VALUE")
    recorded = json.loads((out / "manifest.json").read_text())["assumed"]
    assert recorded == {"prune_ratio": "0.5,0.5", "tradeoff": "0.5"}
    assert api.inspect(out).facts["assumed"] == recorded
    report = api.verify(out, against=path, threads=1)
    assert report.passed
    assert "given these assumptions: prune_ratio=0.5,0.5 tradeoff=0.5" in report.verdict


GUESSES = (
    "nobody told prune_ratio, prune_blocks and tradeoff of this Evo-ViT, and no published model of "
    "its shape stands behind a guess; give the trained ones, where this would be the guess: "
    "--set prune_ratio=0.5,0.5 --set prune_blocks=4,8 --set tradeoff=0.5."
)


def test_no_guess_is_exported(tmp_path, capsys):
    """Of a shape that nobody published. What the sentence asks for is enough."""
    command = ["export", str(EVOVIT), "-o", str(tmp_path / "out"), "--set", "num_heads=6"]
    assert main(command) == 3
    assert GUESSES in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main([*command, *GUESSES.rstrip(".").split(": ")[1].split(" ")]) == 0


def test_a_file_is_told_its_lines(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("family: evovit\nnum_heads: 6\nprune_ratio: 0.5\n")
    with pytest.raises(InputError, match="prune_ratio has 1 values for stages"):
        api.export(EVOVIT, tmp_path / "out", arch=str(file))
    file.write_text("family: evovit\nnum_heads: 6\nprune_blocks: [4, 8]\n")
    with pytest.raises(InputError, match=r"write the trained ones into a\.yaml, where") as info:
        api.export(EVOVIT, tmp_path / "out", arch=str(file))
    lines = info.value.fix.split(": ", 1)[1].strip("'").split("', '")
    assert lines == ["prune_ratio: 0.5,0.5", "tradeoff: 0.5"]
    file.write_text("\n".join([file.read_text(), *lines]))
    assert list(api.export(EVOVIT, tmp_path / "out", arch=str(file)).assumed) == PREPROCESS


def test_a_published_shape_with_other_settings(tmp_path, monkeypatch):
    published(monkeypatch, prune_ratio=(0.7, 0.7))
    with pytest.raises(InputError, match="nobody told prune_ratio of this Evo-ViT, and no") as info:
        api.export(EVOVIT, tmp_path / "out")
    assert "--set prune_ratio=0.5,0.5" in info.value.fix and "tradeoff" not in info.value.fix


@pytest.mark.parametrize(
    "change", [{"num_heads": 3}, {"embed_dim": 96}, {"depth": 24}, {"patch_size": 8}]
)
def test_another_shape_is_not_published(tmp_path, monkeypatch, change):
    monkeypatch.setitem(PRESETS, "small", replace(SMALL, **change))
    with pytest.raises(InputError, match="no published model of its shape"):
        api.export(EVOVIT, tmp_path / "out", overrides={"num_heads": "6"})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_published_shape(name):
    """With its own settings, whatever the classes and the image."""
    preset = PRESETS[name]
    family = FAMILIES[preset.family]
    dims = replace(family.dims_from_arch(preset), num_classes=7, num_patches=9)
    found = published_settings(family, dims, preset.num_heads)
    assert preset.settings.items() <= found.items()
    assert found["gate_blocks"] == preset.gate_blocks or not family.method.trained_gates
    assert found["mean"] == preset.mean and found["interpolation"] == preset.interpolation
    assert not published_settings(family, dims, preset.num_heads + 1)
    assert not published_settings(family, replace(dims, mlp_dim=dims.mlp_dim + 1), preset.num_heads)


def test_pictures_that_decide_need_their_preprocessing(tmp_path, golden):
    """No graph contains it, but for thresholds and budgets that are chosen on pictures."""
    path, told = golden("svit_cls").model.checkpoint.path, SETTINGS["svit_cls"]
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 56, 56, 3), np.uint8))
    pictures = {"calibrate_gates": tmp_path / "images.npz", "target_keep": (0.5,)}
    budget = {"calibration": tmp_path / "images.npz", "tokens": "budget", "budget": "auto"}
    words = "nobody told mean, std, crop_ratio and interpolation of this SViT"
    for options in (pictures, budget):
        with pytest.raises(InputError, match=words) as info:
            api.export(path, tmp_path / "out", overrides=told, **options)
    given = dict(part.split("=") for part in info.value.fix.split(" --set ")[1:])
    given["mean"] = info.value.fix.split("mean=")[1].split(" ")[0]
    bundle = api.export(path, tmp_path / "out", overrides=told | given, **budget)
    assert not bundle.assumed
    assert list(api.export(path, tmp_path / "other", overrides=told).assumed) == PREPROCESS


def test_strict_refuses_what_is_published_too(tmp_path, monkeypatch):
    published(monkeypatch)
    with pytest.raises(InputError, match="--strict assumes nothing, and nobody told prune_ratio, "):
        api.export(EVOVIT, tmp_path / "out", strict=True)
    told = SETTINGS["evovit"]
    with pytest.raises(InputError, match="nobody told mean, std, crop_ratio and interpolation of"):
        monkeypatch.delitem(PRESETS, "small")
        api.export(EVOVIT, tmp_path / "out", overrides=told, strict=True)
    told |= {"mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5"}
    told |= {"crop_ratio": "0.9", "interpolation": "bilinear"}
    assert api.export(EVOVIT, tmp_path / "out", overrides=told, strict=True).assumed == {}


def test_inspect_tells_what_an_export_would_refuse(tmp_path, monkeypatch, capsys):
    found = api.inspect(EVOVIT).facts
    facts = {fact["name"]: fact for fact in found["model"]}
    assert found["problem"] is None
    assert facts["tradeoff"] == {
        "name": "tradeoff", "value": 0.5, "source": "needed", "option": "--set tradeoff=0.5"
    }  # fmt: skip
    assert facts["mean"]["source"] == "assumed"
    assert main(["inspect", str(EVOVIT)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    guesses = "--set prune_ratio=0.5,0.5 --set prune_blocks=4,8 --set tradeoff=0.5"
    asked = f"needs --set num_heads=NUMBER, and the trained values for these guesses {guesses}, or"
    assert asked in shown
    assert "needed, and this a guess: --set tradeoff=0.5" in shown
    published(monkeypatch)
    facts = {fact["name"]: fact for fact in api.inspect(EVOVIT).facts["model"]}
    assert facts["tradeoff"]["source"] == "assumed"
    assert main(["inspect", str(EVOVIT)]) == 0
    assert "export ready" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("preset", ["lvvit_t", "vit_adapter_t"])
def test_inspect_takes_a_backbone_as_the_export_does(tmp_path, preset):
    api.init(preset, tmp_path / "a.safetensors")
    found = api.inspect(tmp_path / "a.safetensors").facts
    sources = {fact["name"]: fact["source"] for fact in found["model"]}
    own = {"lvvit_t": "skip_lam", "vit_adapter_t": "deform_heads"}[preset]
    assert sources[own] == sources["num_heads"] == f"preset {preset}"
    assert "needed" not in sources.values() and found["problem"] is None


def test_the_dense_twin_assumes_nothing_about_gates(tmp_path, golden):
    path = golden("svit_cls").model.checkpoint.path
    bundle = api.export(path, tmp_path / "out", overrides={"num_heads": "6"}, tokens="dense")
    assert list(bundle.assumed) == PREPROCESS


def test_values_are_written_as_they_are_typed():
    assert [typed(value) for value in (0.5, True, (3, 4), (True, False), "bicubic")] == [
        "0.5", "true", "3,4", "true,false", "bicubic",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("evovit", {"gate_blocks": "4,8"}, "gate_blocks is no setting of evovit.*use prune_blocks"),
        ("evovit", {"gate_class_token": "false,true"}, "gate_class_token is no setting of evovit"),
    ],
)
def test_a_setting_that_would_be_dropped_is_refused(golden, name, given, words):
    with pytest.raises(InputError, match=f"(?s){words}"):
        build_model(golden(name).model.checkpoint, overrides={"num_heads": "6"} | given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mean": "123.7,116.3,103.5"}, "mean .* is not of values from 0 to 1"),
        ({"std": "58.4,57.1,57.4"}, "std .* is not of values from 0 to 1"),
        ({"family": "evit", "keep_rate": "0.7", "fuse": "true", "prune_blocks": "9,6"},
         r"prune_blocks \[9, 6\] are not ascending"),
    ],
)  # fmt: skip
def test_values_beyond_reason_are_refused_by_their_own_name(golden, given, words):
    with pytest.raises(InputError, match=words):
        build_model(golden("deit").model.checkpoint, overrides={"num_heads": "6"} | given)


def test_a_key_that_a_file_says_twice_is_refused(tmp_path, golden):
    file = tmp_path / "a.yaml"
    file.write_text("family: evovit\nnum_heads: 6\nprune_ratio: 0.5\nprune_ratio: 0.7\n")
    with pytest.raises(InputError, match="prune_ratio stands there twice"):
        build_model(golden("evovit").model.checkpoint, arch=str(file))


def test_a_label_beyond_the_classes_is_refused(tmp_path, golden):
    path, out = golden("svit_cls").model.checkpoint.path, tmp_path / "out"
    pictures = np.zeros((2, 56, 56, 3), np.uint8)
    np.savez(tmp_path / "labelled.npz", images=pictures, labels=np.array([3, 20]))
    api.export(path, out, overrides=SETTINGS["svit_cls"])
    with pytest.raises(InputError, match="label 20 is none of the model's 20 classes"):
        api.verify(out, against=path, images=tmp_path / "labelled.npz", threads=1)
