"""What inspect says of checkpoints, bundles and ONNX files, and that it runs nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
from onnx import TensorProto, helper
from rich.console import Console

from svit_deploy.bundle import MODEL, Bundle
from svit_deploy.errors import InputError
from svit_deploy.graph.edit import set_scalars
from svit_deploy.inspection import Inspection, inspect_path
from svit_deploy.io.files import hash_file
from svit_deploy.io.onnx_file import load_onnx
from svit_deploy.loading.presets import PRESETS
from svit_deploy.model.arch import Arch
from tests.told import checkpoint_of

Export = Callable[..., Bundle]
ROOT = Path(__file__).parents[2]


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def shown(found: Inspection, encoding: str = "cp1252") -> str:
    """The rendering, on a terminal of 80 columns that knows few characters."""
    stream = Terminal(io.BytesIO(), encoding=encoding, errors="strict", newline="")
    found.render(Console(file=stream, width=80, no_color=True, force_terminal=False))
    stream.flush()
    text = stream.buffer.getvalue().decode(encoding)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.isascii() or encoding != "ascii"
    return text


def record(found: Inspection) -> dict[str, Any]:
    """The JSON form, by way of JSON."""
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert facts == found.to_dict()
    assert facts["schema_version"] == 1
    assert facts["kind"] == found.kind
    return facts


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        inspect_path(path)
    assert caught.value.fix
    return str(caught.value)


# --- checkpoints -------------------------------------------------------------------------------


def test_training_checkpoint() -> None:
    pytest.importorskip("torch")
    path = checkpoint_of("svit_cls")
    found = inspect_path(path)
    facts = record(found)
    assert facts["sha256"] == hash_file(path)
    assert facts["size_bytes"] == path.stat().st_size
    assert facts["container"] == "training checkpoint (model)"
    assert (facts["family"], facts["preset"], facts["problem"]) == ("svit", None, None)
    assert facts["notes"] == ["model_ema ignored, weights taken from 'model'"]
    assert facts["training_args"] == {"model": "svit_s", "input_size": 56, "ratio_loss_lambda": 4.0}
    model = {fact["name"]: (fact["value"], fact["source"]) for fact in facts["model"]}
    assert model["embed_dim"] == (48, "weights")
    assert model["num_gates"] == (9, "weights")
    assert model["image_size"] == ([56, 56], "weights, as a square")
    assert model["num_heads"] == (None, "needed")
    assert model["gate_blocks"] == ([3, 4, 5, 6, 7, 8, 9, 10, 11], "needed")
    assert model["gate_class_token"] == ([False] * 8 + [True], "needed")
    assert model["crop_ratio"] == (0.875, "assumed")
    text = shown(found)
    needed = "needs --set num_heads=NUMBER, and the trained values for these guesses --set gate_"
    assert needed in " ".join(text.split())
    assert facts["sha256"] in text
    assert "model svit_s, input_size 56, ratio_loss_lambda 4.0" in text
    assert "/x" not in text  # the data path among the training arguments


def test_recognised_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    arch = Arch("svit", 6, 48, 12, 4, (56, 56), 20, False, tuple(range(3, 12)), (False,) * 9)
    monkeypatch.setitem(PRESETS, "small", arch)
    found = inspect_path(checkpoint_of("svit_cls"))
    facts = record(found)
    assert facts["preset"] == "small"
    model = {fact["name"]: (fact["value"], fact["source"]) for fact in facts["model"]}
    assert model["num_heads"] == (6, "preset small")
    assert model["gate_class_token"] == ([False] * 9, "preset small")
    text = shown(found)
    assert "ready" in text
    assert "--set" not in text


def test_checkpoint_without_gates_or_torch(tmp_path: Path) -> None:
    """safetensors, whose image size is no square: where PyTorch cannot be imported."""
    shapes = {
        "cls_token": (1, 1, 4), "pos_embed": (1, 7, 4), "patch_embed.proj.weight": (4, 3, 2, 2),
        "blocks.0.attn.qkv.weight": (12, 4), "blocks.0.mlp.fc1.weight": (8, 4),
        "head.weight": (3, 4),
    }  # fmt: skip
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    safetensors.numpy.save_file(weights, tmp_path / "weights.bin")
    script = (
        "import sys, json; sys.modules['torch'] = sys.modules['onnxruntime'] = None\n"
        "from pathlib import Path; from svit_deploy.inspection import inspect_path\n"
        "print(json.dumps(inspect_path(Path(sys.argv[1])).to_dict()))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "weights.bin")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["family"], facts["tensors"], facts["parameters"]) == ("deit", 6, 172)
    assert "missing" in facts["problem"]
    model = {fact["name"]: (fact["value"], fact["source"]) for fact in facts["model"]}
    assert model["num_patches"] == (6, "weights")
    assert model["image_size"] == (None, "needed")
    assert "gate_blocks" not in model


def test_foreign_checkpoint(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"layer1.0.conv.weight": np.zeros(2)}, tmp_path / "resnet")
    found = inspect_path(tmp_path / "resnet")
    facts = record(found)
    assert facts["family"] is None
    assert facts["model"] == []
    assert "of no known method" in facts["problem"]
    assert "not possible: the checkpoint is of no known" in shown(found)


def test_training_arguments_that_no_report_can_hold(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    args = {
        "input_size": 10**500, "eval_crop_ratio": float("nan"), "model": "\x1b[2J" + "m" * 5000,
        "keep_ratio": [0.7, 0.5], "base_keep_ratio": [float("inf")], "nb_classes": None,
    }  # fmt: skip
    torch.save({"model": {"w": torch.ones(1)}, "args": args}, tmp_path / "w.pth")
    found = inspect_path(tmp_path / "w.pth")
    assert record(found)["training_args"] == {"model": args["model"], "keep_ratio": [0.7, 0.5]}
    assert len(shown(found)) < 4000


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "w.pth").write_bytes(pickle.dumps(Payload()))
    assert "not run" in refusal(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_detectors() -> None:
    pytest.importorskip("torch")
    facts = record(inspect_path(checkpoint_of("svit_mask_rcnn")))
    text = json.dumps(facts)
    assert '"svit_adapter"' in text and '"interaction_blocks"' in text
    model = {fact["name"]: fact for fact in facts["model"]}
    assert model["tasks"]["value"] == ["backbone", "detect"]
    assert model["fpn_dim"]["value"] == 16 and model["num_gates"]["value"] == 9
    assert model["num_heads"]["source"] == "needed"
    backbone = record(inspect_path(checkpoint_of("vit_adapter_dense")))
    assert {f["name"]: f["value"] for f in backbone["model"]}["tasks"] == ["backbone"]


# --- bundles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["dynamic", "budget", "masked", "dense"])
def test_bundle(export: Export, mode: str) -> None:
    bundle = export("svit_cls", mode)
    found = inspect_path(bundle.path)
    assert found.kind == "bundle"
    assert found == inspect_path(bundle.path / "manifest.json")
    facts = record(found)
    assert facts["gates"] == bundle.manifest["gates"]
    assert facts["tokens"]["mode"] == mode
    text = shown(found)
    for words in (
        "checkpoint.pth", "batch          1 to 32", "bicubic", "mean 0.485", "3 images",
        bundle.manifest["checkpoint"]["sha256"], "model.onnx", "reference.npz",
        "12 blocks, 48 channels, 6 heads, 20 classes", f"token mode     {mode}",
    ):  # fmt: skip
        assert words in text
    assert ("always kept" in text) == (mode != "dense")


def test_gate_table_of_a_bundle(export: Export) -> None:
    gates = export("svit_cls", "budget").manifest["gates"]
    lines = shown(inspect_path(export("svit_cls", "budget").path)).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("gate "))
    assert lines[start].split() == [
        "gate", "block", "class", "token", "gated", "target", "kept", "threshold", "budget"
    ]  # fmt: skip
    assert lines[start + 1].split() == [
        "0", "3", "always", "kept", "196", "-", f"{gates[0]['measured_keep']:.4g}", "0", "196"
    ]  # fmt: skip
    assert "may be pruned" in lines[start + 9]


def test_changed_bundle_is_refused(tmp_path: Path, export: Export) -> None:
    copy = Path(shutil.copytree(export("svit_cls", "dynamic").path, tmp_path / "copy"))
    (copy / MODEL).write_bytes(b"\x08\x09")
    assert "not the file that was exported" in refusal(copy)


# --- ONNX files --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["dynamic", "budget"])
def test_exported_graph(export: Export, mode: str) -> None:
    path = export("svit_cls", mode).model_path
    found = inspect_path(path)
    facts = record(found)
    assert (facts["kind"], facts["name"]) == ("onnx", MODEL)
    assert facts["sha256"] == hash_file(path)
    assert facts["opsets"] == {"ai.onnx": 20}
    assert facts["inputs"] == [
        {"name": "images", "type": "float", "shape": ["batch", 3, 56, 56]}
    ]  # fmt: skip
    outputs = ["logits", "keep_mask", "margin"] + (["overflow"] if mode == "budget" else [])
    assert [value["name"] for value in facts["outputs"]] == outputs
    assert facts["random_operators"] == facts["custom_domains"] == []
    assert list(facts["data_dependent_operators"]) == (["NonZero"] if mode == "dynamic" else [])
    assert facts["gates"] == [{"gate": gate, "threshold": 0.0} for gate in range(9)]
    assert facts["metadata"]["mode"] == mode
    assert facts["operators"]["LayerNormalization"] == 34
    assert facts["nodes"] == sum(facts["operators"].values())
    assert 0.9 * path.stat().st_size < facts["tensor_bytes"] < path.stat().st_size
    text = shown(found)
    assert f"token mode     {mode}" in text
    assert "[batch, 3, 56, 56]" in text
    assert ("its shapes depend on the image" in text) == (mode == "dynamic")
    assert "foreign" not in text


def test_threshold_that_differs_from_the_metadata(tmp_path: Path, export: Export) -> None:
    model = load_onnx(export("svit_cls", "dynamic").model_path)
    changed = set_scalars(model, {"gate_3.threshold": 0.25, "gate_4.threshold": float("nan")})
    (tmp_path / "m.onnx").write_bytes(changed.SerializeToString())
    found = inspect_path(tmp_path / "m.onnx")
    gates = record(found)["gates"]
    assert (gates[3]["threshold"], gates[4]["threshold"]) == (0.25, None)
    assert "gate 3 was exported with threshold 0, the graph has 0.25" in found.notes
    assert "gate 4 was exported with threshold 0, the graph has nan" in found.notes
    assert len(found.notes) == 3


@pytest.mark.parametrize(
    "gates", ["[", "7", "[1]", '[{"gate": 0}]', "[" * 100_000, '[{"gate": []}]']
)
def test_metadata_of_others_under_our_name(tmp_path: Path, gates: str) -> None:
    model = foreign_model(helper.make_node("Identity", ["x"], ["y"]))
    model.graph.initializer.append(
        helper.make_tensor("gate_0.threshold", TensorProto.FLOAT, [], [1.0])
    )
    helper.set_model_props(model, {"svit_deploy.gates": gates, "svit_deploy.arch": "[b]\x1b[2J"})
    found = inspect_path(save(tmp_path / "m.onnx", model))
    assert found.notes == ()
    assert "[b]?[2J" in shown(found)


def foreign_model(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [None, "größe 日本"])
    y = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "g", [x], [y])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 3)]
    return helper.make_model(graph, opset_imports=opsets)


def save(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_foreign_graph(tmp_path: Path) -> None:
    branch = helper.make_graph([helper.make_node("Unique", ["x"], ["u"])], "b", [], [])
    model = foreign_model(
        helper.make_node("RandomNormalLike", ["x"], ["r"], name="noise"),
        helper.make_node("Attack", ["r"], ["y"], domain="com.example"),
        helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch),
    )
    found = inspect_path(save(tmp_path / "any name", model))
    facts = record(found)
    assert facts["metadata"] is None
    assert facts["inputs"] == [{"name": "x", "type": "float16", "shape": ["?", "größe 日本"]}]
    assert facts["outputs"] == [{"name": "y", "type": "sequence", "shape": None}]
    assert facts["opsets"] == {"ai.onnx": 17, "com.example": 3}
    assert facts["random_operators"] == ["noise (RandomNormalLike)"]
    assert facts["custom_domains"] == ["com.example"]
    assert facts["data_dependent_operators"] == {"If": 1, "Unique": 2}
    assert found.notes[0] == "foreign model: no svit-deploy metadata"
    assert len(found.notes) == 4
    assert "größe ??" in shown(found)
    assert "gr??e ??" in shown(found, "ascii")
    assert "größe 日本" in shown(found, "utf-8")


def test_long_lists_are_cut_on_the_terminal_only(tmp_path: Path) -> None:
    nodes = (helper.make_node(f"Operator{i}", ["x"], ["y"]) for i in range(2000))
    found = inspect_path(save(tmp_path / "m.onnx", foreign_model(*nodes)))
    assert len(record(found)["operators"]) == 2000
    assert len(shown(found).splitlines()) < 50
    piped = io.StringIO()
    found.render(Console(file=piped, width=100_000))
    assert "Operator1999" in piped.getvalue()


def test_weights_that_old_files_list_as_inputs(tmp_path: Path) -> None:
    model = foreign_model(helper.make_node("Identity", ["x"], ["y"]))
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0]))
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]))
    model.graph.input[0].type.tensor_type.elem_type = 999
    facts = record(inspect_path(save(tmp_path / "m.onnx", model)))
    assert [value["type"] for value in facts["inputs"]] == ["type 999"]


# --- anything else -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.txt", b"plain text, long enough", "neither a checkpoint, nor a bundle"),
        ("model.engine", b"ftrt" + bytes(100), "neither a checkpoint, nor a bundle"),
        ("verify.json", b'{"schema_version": 1}', "neither a checkpoint, nor a bundle"),
        ("empty", b"", "neither a checkpoint, nor a bundle"),
        ("empty.onnx", b"", "is empty"),
        ("page.onnx", b"<html>", "web page"),
        ("page.pth", b"<!doctype html>", "web page"),
        ("pointer.safetensors", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        ("archive", b"PK\x03\x04" + bytes(100), "damaged zip"),
    ],
)
def test_other_files(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert words in refusal(tmp_path / name)


def test_other_paths(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing")
    assert "has no manifest.json" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in refusal(tmp_path / "pipe")


def test_files_are_told_apart_by_content(tmp_path: Path, export: Export) -> None:
    shutil.copy(export("svit_cls", "dynamic").model_path, tmp_path / "model")
    assert inspect_path(tmp_path / "model").kind == "onnx"
    # A header of 0x08 bytes, padded, begins as an ONNX file does.
    header = b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    content = (0x108).to_bytes(8, "little") + header.ljust(0x108)
    (tmp_path / "weights.onnx").write_bytes(content)
    assert inspect_path(tmp_path / "weights.onnx").kind == "checkpoint"
