"""Reading checkpoints: containers, prefixes, number formats, and what PyTorch is needed for."""

from __future__ import annotations

import argparse
import hashlib
import pathlib
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from svit_deploy.io.checkpoint import read_checkpoint, strip_prefixes
from svit_deploy.io.containers import some
from tests.told import checkpoint_of

torch = pytest.importorskip("torch")

META = "dictionary (state_dict)"
NAMES = ("svit_cls", "svit_cls_224", "svit_cls_empty_gate", "deit", "deit_distilled")


def state(**tensors: Any) -> dict[str, Any]:
    return tensors or {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def save(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def assert_same(found: dict[str, np.ndarray], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        array = found[name]
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert array.flags.writeable
        np.testing.assert_array_equal(array, np.asarray(tensor, np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_golden_weights_are_those_of_the_key_model(name: str) -> None:
    path = checkpoint_of(name)
    expected = torch.load(path, weights_only=False)["model"]
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, expected)
    assert checkpoint.size_bytes == path.stat().st_size
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_training_checkpoint_gives_its_model_and_arguments_not_its_ema() -> None:
    checkpoint = read_checkpoint(checkpoint_of("svit_cls"))
    assert checkpoint.container == "training checkpoint (model)"
    assert checkpoint.notes == ("model_ema ignored, weights taken from 'model'",)
    assert checkpoint.training_args["ratio_loss_lambda"] == 4.0
    assert np.abs(checkpoint.tensors["cls_token"]).max() > 0


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("wrap", "container"),
    [
        (lambda s: s, "bare state dict"),
        (OrderedDict, "bare state dict"),
        (lambda s: {"model": s}, "dictionary (model)"),
        (lambda s: {"state_dict": s, "meta": {"epoch": 1}}, META),
        (lambda s: {"model": s, "optimizer": {}}, "training checkpoint (model)"),
        (lambda s: {"model": {k: torch.nn.Parameter(v) for k, v in s.items()}}, None),
    ],
)
def test_containers(tmp_path: Path, wrap: Any, container: str | None, legacy: bool) -> None:
    path = save(tmp_path / "weights.any", wrap(state()), _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, state())
    assert checkpoint.container == (container or "dictionary (model)")
    assert checkpoint.training_args == ({"epoch": 1} if container == META else {})


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "backbone."]
)
def test_prefixes_are_removed(tmp_path: Path, prefix: str) -> None:
    path = save(tmp_path / "p.pth", {f"{prefix}{key}": value for key, value in state().items()})
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, state())
    assert checkpoint.notes == (f"prefix {prefix!r} removed",)


def test_prefix_of_some_keys_stays() -> None:
    tensors = {"module.a": np.zeros(1), "b": np.zeros(1)}
    assert strip_prefixes(tensors) == (tensors, "")


@given(
    st.sets(st.text(min_size=1).filter(lambda k: "mod" not in k and "back" not in k), min_size=1),
    st.lists(st.sampled_from(["module.", "_orig_mod.", "backbone."]), max_size=3),
)
def test_prefixes_come_off_as_they_went_on(keys: set[str], prefixes: list[str]) -> None:
    prefix = "".join(prefixes)
    tensors = {key: np.zeros(1) for key in keys}
    wrapped = {f"{prefix}{key}": value for key, value in tensors.items()}
    assert strip_prefixes(wrapped) == (tensors, prefix)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_precisions_become_float32(tmp_path: Path, dtype: str, suffix: str) -> None:
    exact = {"w": torch.tensor([[0.5, -3.0], [1.0, 0.15625]])}  # exact in each of the formats
    stored = {"w": exact["w"].to(getattr(torch, dtype))}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        save(path, stored)
    else:
        import safetensors.torch

        safetensors.torch.save_file(stored, path)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, exact)
    verb = "rounded" if dtype == "float64" else "widened"
    assert checkpoint.notes == (f"{dtype} weights {verb} to float32",)


def test_arrays_do_not_depend_on_the_file_or_on_each_other(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    path = save(tmp_path / "w.pth", {"a": shared, "b": shared, "t": shared.reshape(2, 2).T})
    tensors = read_checkpoint(path).tensors
    path.unlink()
    tensors["a"][:] = 7
    np.testing.assert_array_equal(tensors["b"], [0, 1, 2, 3])
    np.testing.assert_array_equal(tensors["t"], [[0, 2], [1, 3]])
    assert tensors["t"].flags.c_contiguous


def test_safetensors_by_content_without_torch(tmp_path: Path) -> None:
    """The weights, and the message about a .pth file, where PyTorch cannot be imported."""
    arrays = {"module.w": np.arange(6, dtype=np.float32).reshape(2, 3), "module.e": np.zeros(0)}
    safetensors.numpy.save_file(arrays, tmp_path / "weights.bin")
    save(tmp_path / "weights.pth", state())
    script = """
import sys
sys.modules["torch"] = None
from pathlib import Path
from svit_deploy.io.checkpoint import read_checkpoint
from svit_deploy.errors import CapabilityError
from svit_deploy.loading.load import load_model
checkpoint = read_checkpoint(Path(sys.argv[1]) / "weights.bin")
assert checkpoint.container == "safetensors"
assert checkpoint.tensors["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
try:
    read_checkpoint(Path(sys.argv[1]) / "weights.pth")
except CapabilityError as error:
    assert error.exit_code == 4
    print(error)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'svit-deploy[torch]'" in done.stdout
    assert ".safetensors" in done.stdout


def test_only_plain_training_arguments_are_kept(tmp_path: Path) -> None:
    args = argparse.Namespace(
        lr=0.1,
        names=["a", "b"],
        nested={"x": 1},
        tensor=torch.ones(1),
        output=Path("/runs") / "one",
    )
    checkpoint = read_checkpoint(save(tmp_path / "a.pth", {"model": state(), "args": args}))
    assert checkpoint.training_args == {"lr": 0.1, "names": ["a", "b"], "output": "/runs/one"}
    windows = pathlib.PureWindowsPath("C:/x")  # a class that no stand-in covers is refused
    path = save(tmp_path / "b.pth", {"model": state(), "args": argparse.Namespace(p=windows)})
    with pytest.raises(Exception, match=r"pathlib\.\w*\.?PureWindowsPath"):
        read_checkpoint(path)


def test_integer_buffers_stay_integers(tmp_path: Path) -> None:
    path = save(tmp_path / "i.pth", {"count": torch.tensor(3), "w": torch.ones(1)})
    assert read_checkpoint(path).tensors["count"].dtype == np.int64


def test_views_with_a_pending_negation_are_resolved(tmp_path: Path) -> None:
    negated = torch.complex(torch.ones(2), torch.arange(2.0)).conj().imag
    assert negated.is_neg()
    tensors = read_checkpoint(save(tmp_path / "n.pth", {"w": negated})).tensors
    np.testing.assert_array_equal(tensors["w"], [0, -1])


def test_some_cuts_and_cleans_names() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some("abcdef", limit=2) == "a, b and 4 more"
    assert some(["\x1b[31m" + "x" * 300]) == "?[31m" + "x" * 95
