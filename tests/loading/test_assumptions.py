"""What is assumed about a model is found, recorded and refused by --strict."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy import api
from svit_deploy.cli import main
from svit_deploy.errors import InputError
from svit_deploy.loading.load import build_model, load_model
from svit_deploy.model.assumption import typed

PREPROCESS = ["mean", "std", "crop_ratio", "interpolation"]


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


def test_an_export_lists_records_and_repeats_them(tmp_path, golden, capsys):
    path, out = golden("evovit").model.checkpoint.path, tmp_path / "out"
    command = ["export", str(path), "-o", str(out), "--set", "num_heads=6"]
    command += ["--set", "mean=0.5,0.5,0.5", "--set", "prune_blocks=4,8"]
    main(["-q", *command])
    quiet = capsys.readouterr()
    main([*command, "--force"])
    loud = capsys.readouterr().out.splitlines()
    line = next(x for x in loud if x.startswith("assumed "))
    assert "prune_ratio=0.5,0.5 tradeoff=0.5 std=0.229,0.224,0.225" in line
    assert "mean" not in line
    assert quiet.out == f"{out}\n"
    assert quiet.err == f"warning: assumed {line.removeprefix('assumed').strip()}\n"
    recorded = json.loads((out / "manifest.json").read_text())["assumed"]
    assert list(recorded) == ["prune_ratio", "tradeoff", "std", "crop_ratio", "interpolation"]
    assert api.inspect(out).facts["assumed"] == recorded
    report = api.verify(out, against=path, threads=1)
    assert report.passed
    assert "given these assumptions: prune_ratio=0.5,0.5 tradeoff=0.5" in report.verdict


def test_strict_refuses_and_is_content_with_what_it_asks_for(tmp_path, golden):
    path = golden("evovit").model.checkpoint.path
    told = {"num_heads": "6"}
    with pytest.raises(InputError, match="nor a preset tell prune_ratio and prune_blocks") as info:
        api.export(path, tmp_path / "out", overrides=told, strict=True)
    assert not (tmp_path / "out").exists()
    asked = info.value.fix.split(": ", 1)[1].rstrip(".").split(" --set ")
    told |= dict(part.removeprefix("--set ").split("=", 1) for part in asked)
    assert api.export(path, tmp_path / "out", overrides=told, strict=True).assumed == {}


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
    api.export(path, out, overrides={"num_heads": "6"})
    with pytest.raises(InputError, match="label 20 is none of the model's 20 classes"):
        api.verify(out, against=path, images=tmp_path / "labelled.npz", threads=1)
