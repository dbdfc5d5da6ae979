"""Which entry of a training checkpoint is taken, and what is said of odd ones."""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

pytest.importorskip("torch")

import torch

from svit_deploy import api
from svit_deploy.errors import InputError
from svit_deploy.io.checkpoint import read_checkpoint
from svit_deploy.loading.layout import unwrap
from svit_deploy.loading.load import load_model
from tests.io.test_strict_yaml import COPIES
from tests.told import SETTINGS, checkpoint_of


def saved(path: Path, content: object) -> Path:
    torch.save(content, path / "weights.pth")
    return path / "weights.pth"


def state(value: float, prefix: str = "") -> dict[str, torch.Tensor]:
    names = ("norm.weight", "norm.bias", "blocks.0.attn.qkv.weight")
    return {prefix + name: torch.full((2, 2), value) for name in names}


def first(path: Path, **options: str) -> float:
    return float(read_checkpoint(path, **options).tensors["norm.weight"][0, 0])


def test_an_entry_is_taken_by_its_name(tmp_path):
    path = saved(tmp_path, {"model": state(1), "model_ema": state(2), "teacher": state(3)})
    assert [first(path), first(path, weights="model_ema"), first(path, weights="teacher")] == [
        1,
        2,
        3,
    ]
    assert "model_ema ignored, weights taken from 'model'" in read_checkpoint(path).notes
    with pytest.raises(InputError, match="no entry 'student', its keys are 'model', 'model_ema'"):
        read_checkpoint(path, weights="student")


def test_averaged_weights_alone_are_taken_and_told(tmp_path):
    found = read_checkpoint(saved(tmp_path, {"state_dict_ema": state(4, "module."), "epoch": 3}))
    assert (found.tensors["norm.weight"] == 4).all()
    assert "averaged weights taken, from 'state_dict_ema'" in found.notes
    assert "prefix 'module.' removed" in found.notes


@pytest.mark.parametrize("prefix", ["model.", "net.", "student.model."])
def test_what_a_wrapper_put_before_all_keys_is_removed_and_told(tmp_path, prefix):
    content = torch.load(checkpoint_of("svit_cls"), weights_only=False)["model"]
    wrapped = {prefix + name: tensor for name, tensor in content.items()}
    path = saved(tmp_path, {"state_dict": wrapped})
    model = load_model(path, overrides={"num_heads": "6"})
    plain = load_model(checkpoint_of("svit_cls"), overrides={"num_heads": "6"})
    assert f"prefix {prefix!r} removed" in model.notes
    assert all((model.weights[name] == array).all() for name, array in plain.weights.items())
    assert api.inspect(path).facts["family"] == "svit"


def test_a_part_that_counts_its_layers_is_no_wrapper():
    weights = {f"blocks.{i}.weight": np.ones(2) for i in range(2)}
    assert unwrap(weights) == (weights, "")


def test_an_entry_that_is_no_tensor_is_named(tmp_path):
    with pytest.raises(InputError, match=r"hold epoch \(int\) beside the tensors"):
        read_checkpoint(saved(tmp_path, {**state(1), "epoch": 3}))


def test_huge_numbers_are_survived(tmp_path):
    huge = 10**9000  # which PyTorch's restricted unpickler does not take
    args = argparse.Namespace(model="svit", lr=huge, keep_ratio=[0.7, huge])
    path = saved(tmp_path, {"model": state(1), huge: 1, "args": args})
    assert read_checkpoint(path, allow_pickle=True).training_args == {"model": "svit"}
    with pytest.raises(InputError, match="its keys are 'model', 'a huge int', 'args'"):
        read_checkpoint(path, weights="ema", allow_pickle=True)
    with pytest.raises(InputError, match=r"hold a huge int \(int\) beside"):
        read_checkpoint(saved(tmp_path, {**state(1), huge: 1}), allow_pickle=True)


def test_configurations_that_are_text_are_not_trusted(tmp_path):
    for text in (COPIES, "a: !!bool x", "[" * 5000):
        path = saved(tmp_path, {"model": state(1), "cfg": text})
        assert read_checkpoint(path).training_args == {}


def test_one_set_of_weights_takes_no_name(tmp_path):
    save_file({"norm.weight": np.ones(2, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="leave --weights out"):
        read_checkpoint(tmp_path / "a.safetensors", weights="model")


def test_a_shape_of_too_many_dimensions_is_damage(tmp_path):
    header = {"norm.weight": {"dtype": "F32", "shape": [1] * 70, "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(InputError, match="impossible shape"):
        read_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.slow
def test_averaged_weights_are_exported_and_verified(tmp_path):
    content = torch.load(checkpoint_of("svit_cls"), weights_only=False)
    average = {name: tensor * 0.5 for name, tensor in content["model"].items()}
    path = saved(tmp_path, {"model": content["model"], "model_ema": average})
    told = SETTINGS["svit_cls"]
    bundle = api.export(path, tmp_path / "out", overrides=told, weights="model_ema")
    assert api.verify(bundle.path, against=path, overrides=told, weights="model_ema").passed
    assert not api.verify(bundle.path, against=path, overrides=told).passed
