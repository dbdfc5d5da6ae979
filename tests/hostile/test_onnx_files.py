"""Damaged, foreign and malicious ONNX files: one sentence, exit code 3, no other file touched.

Each file is made here, so that the repository holds none.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import EXIT_INPUT, InputError, SvitDeployError
from svit_deploy.graph.edit import (
    add_outputs,
    feed_scalars,
    force_values,
    read_scalar,
    set_scalars,
)
from svit_deploy.inspection import inspect_path
from svit_deploy.io.onnx_file import load_onnx

SECRET = np.arange(4, dtype=np.float32).tobytes()


def small_model(
    *initializers: onnx.TensorProto, nodes: list[onnx.NodeProto] | None = None
) -> onnx.ModelProto:
    """y = x + w, or other nodes."""
    weight = initializers or (helper.make_tensor("w", TensorProto.FLOAT, [4], [1, 2, 3, 4]),)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    nodes = nodes or [helper.make_node("Add", ["x", "w"], ["y"], name="add")]
    graph = helper.make_graph(nodes, "small", values[:1], values[1:], list(weight))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def save(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def refusal(path: Path, read: Callable[[Path], object] = load_onnx) -> str:
    """The sentence that refuses the file; also checks its form and exit code."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.exit_code == EXIT_INPUT
    assert caught.value.fix
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert str(path) in sentence
    assert sorted(path.parent.iterdir()) == before
    return sentence


# --- not a model -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"hello, this is text", "not an ONNX model"),
        (bytes(1000), "not an ONNX model"),
        (b"\x08\x09", "holds no ONNX graph"),
        (b"\x08\x09\x3a\x00", "holds no ONNX graph"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model with spaces é.onnx"
    path.write_bytes(content)
    assert words in refusal(path)
    assert words in refusal(path, inspect_path)


def test_no_file(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.onnx")
    assert "is a directory" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "is not a file" in refusal(tmp_path / "pipe.onnx")
    (tmp_path / "dangling.onnx").symlink_to(tmp_path / "nowhere")
    assert "does not exist" in refusal(tmp_path / "dangling.onnx")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", small_model())
    path.chmod(0)
    assert "cannot be read" in refusal(path)


def test_larger_than_a_protobuf_may_be(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)  # a hole: no space taken, nothing read
    assert "2147483648 bytes, more than the 2 GiB" in refusal(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated(tmp_path: Path, share: float) -> None:
    content = small_model().SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(content[: int(len(content) * share)])
    sentence = refusal(path)
    assert "cut short" in sentence or "no ONNX graph" in sentence


@pytest.mark.parametrize("text", ["operator", "metadata"])
def test_text_that_is_not_utf8(tmp_path: Path, text: str) -> None:
    model = small_model()
    helper.set_model_props(model, {"svit_deploy.metadata": "metadata"})
    model.graph.node[0].domain = "operator"
    content = model.SerializeToString().replace(text.encode(), b"\xff" * len(text))
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert "not UTF-8" in refusal(path)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_any_damage_gives_a_sentence_or_a_description(
    tmp_path: Path, junk: bytes, position: int
) -> None:
    content = small_model().SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(content[:position] + junk + content[position + len(junk) :])
    try:
        found = inspect_path(path)
    except SvitDeployError as error:
        assert error.exit_code == EXIT_INPUT
        assert error.fix
    else:
        assert found.to_dict()["kind"] == "onnx"


# --- links to other files ----------------------------------------------------------------------


def external(location: str, length: int = len(SECRET)) -> onnx.TensorProto:
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file beside the model's folder that nothing may read; a pipe would hang whoever did."""
    path = tmp_path / "secret"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    "location",
    ["weights.bin", "../secret", "sub/../../secret", "{secret}", "/dev/zero", "link", "missing",
     "*/_ORT_MEM_ADDR_/*", "", "\x00", "w" * 10_000],
)  # fmt: skip
def test_external_data(tmp_path: Path, secret: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(SECRET)
    (folder / "link").symlink_to(secret)
    path = save(folder / "m.onnx", small_model(external(location.format(secret=secret))))
    for read in (load_onnx, inspect_path):
        sentence = refusal(path, read)
        assert "keeps tensor 'w' in another file" in sentence
        assert len(sentence) < 1000


def test_external_data_by_hard_link(tmp_path: Path) -> None:
    """onnxruntime follows these: a link of this kind cannot be told from the file itself."""
    (tmp_path / "outside").write_bytes(SECRET)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").hardlink_to(tmp_path / "outside")
    path = save(tmp_path / "model" / "m.onnx", small_model(external("weights.bin")))
    assert "in another file ('weights.bin')" in refusal(path)


def test_external_data_longer_than_its_file(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(SECRET[:8])
    path = save(tmp_path / "m.onnx", small_model(external("weights.bin", length=2**40)))
    assert "in another file" in refusal(path)


# --- sizes and depths that lie -----------------------------------------------------------------


def lying(dims: list[int], **content: object) -> onnx.TensorProto:
    return TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, **content)


LIARS = [
    lying([2**40], raw_data=SECRET),
    lying([2**62, 2**62], raw_data=SECRET),
    lying([-1], raw_data=SECRET),
    lying([5], raw_data=SECRET),
    lying([2**40]),
    lying([3], float_data=[1, 2]),
    TensorProto(name="w", data_type=999, dims=[4], raw_data=SECRET),
]


@pytest.mark.parametrize("tensor", LIARS)
def test_declared_sizes_ask_for_no_memory(tmp_path: Path, tensor: onnx.TensorProto) -> None:
    path = save(tmp_path / "m.onnx", small_model(tensor))
    assert inspect_path(path).to_dict()["tensor_bytes"] < 1000
    with pytest.raises(InputError, match="no scalar or is damaged"):
        read_scalar(load_onnx(path), "w")
    assert "could not be loaded" in refusal(path, OnnxRuntimeEngine)


def test_nesting(tmp_path: Path) -> None:
    """Nested by hand: the library refuses to write what it would not read."""

    def field(number: int, content: bytes) -> bytes:
        size, length = b"", len(content)
        while length > 127:
            size, length = size + bytes([length % 128 + 128]), length // 128
        return bytes([number << 3 | 2]) + size + bytes([length]) + content

    graph = b""
    for _ in range(5000):  # graph { node { attribute { g } } }
        graph = field(1, field(5, field(6, graph)))
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x09" + field(7, graph))
    assert "nests too deeply" in refusal(path)


def test_input_of_absurd_size_is_described(tmp_path: Path) -> None:
    model = small_model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**62
    path = save(tmp_path / "m.onnx", model)
    assert inspect_path(path).to_dict()["inputs"][0]["shape"] == [2**62]


# --- graphs that are not ours ------------------------------------------------------------------


def test_custom_operators_do_not_run(tmp_path: Path) -> None:
    node = helper.make_node("Backdoor", ["x"], ["y"], domain="com.example")
    model = small_model(nodes=[node])
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    path = save(tmp_path / "m.onnx", model)
    found = inspect_path(path).to_dict()
    assert found["custom_domains"] == ["com.example"]
    assert found["operators"] == {"com.example::Backdoor": 1}
    assert "Backdoor" in refusal(path, OnnxRuntimeEngine)


def test_foreign_and_simplified_graphs(tmp_path: Path) -> None:
    """What verify and bench ask of a graph by name, where a simplifier took the names away."""
    model = load_onnx(save(tmp_path / "m.onnx", small_model()))
    for edit in (
        lambda: add_outputs(model, ["gate_0.margin"]),
        lambda: set_scalars(model, {"gate_0.threshold": 0.0}),
        lambda: feed_scalars(model, ["gate_0.threshold"]),
        lambda: read_scalar(model, "gate_0.threshold"),
        lambda: force_values(model, {"gate_0.decision": ("batch", 5)}),
    ):
        with pytest.raises(InputError, match="the graph has no") as caught:
            edit()
        assert "as svit-deploy exported it" in caught.value.fix
