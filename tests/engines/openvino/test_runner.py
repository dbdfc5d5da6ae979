"""The OpenVINO engine: what all engines must do is tested for each in `test_contract`."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from svit_deploy.engines.openvino.runner import OpenVinoEngine
from svit_deploy.errors import CapabilityError, InputError, UsageError
from tests.engines.graphs import linear, model_bytes


@pytest.fixture
def images() -> np.ndarray:
    return np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(linear())
    return path


def test_it_describes_itself(model, tmp_path, monkeypatch):
    import openvino

    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path / "cache"))
    with OpenVinoEngine(model, threads=1) as engine:
        told = engine.description
    assert told.pop("device_name")
    assert told == {
        "runtime": "openvino",
        "version": openvino.__version__,
        "device": "CPU",
        "precision": "fp32",
        "threads": 1,
        "from_cache": False,
    }


def test_what_was_compiled_is_kept_for_each_way_to_run_it(
    model, images, half, tmp_path, monkeypatch
):
    """Else the float32 model would run where a half was asked for."""
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path / "cache"))
    for precision in ("fp32", half, "fp32", half):
        with OpenVinoEngine(model, precision=precision) as engine:
            engine.run({"x": images})
    for precision in ("fp32", half):
        with OpenVinoEngine(model, precision=precision) as engine:
            assert engine.description["from_cache"]
            assert engine.run({"x": images})["sum"].ravel().tolist() == [66, 210]
    with OpenVinoEngine(model, threads=1) as engine:
        assert not engine.description["from_cache"]
    with OpenVinoEngine(linear()) as engine:
        assert not engine.description["from_cache"]


def test_a_damaged_cache_is_no_fault(model, images, tmp_path, monkeypatch):
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path / "cache"))
    OpenVinoEngine(model).close()
    (kept,) = (tmp_path / "cache").rglob("*.blob")
    kept.chmod(0o600)
    for content in (kept.read_bytes()[:200], b""):
        kept.write_bytes(content)
        with OpenVinoEngine(model) as engine:
            assert engine.run({"x": images})["sum"].ravel().tolist() == [66, 210]
        kept.chmod(0o600)


def test_without_a_place_for_the_cache(model, images, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path / "file"))
    with OpenVinoEngine(model) as engine:
        assert engine.run({"x": images})["sum"].ravel().tolist() == [66, 210]


def test_outputs_have_the_names_of_the_file(half):
    """OpenVINO removes operators, and with them the names of values."""
    shape = ["B", 2]
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Identity", ["x"], ["c"]),
        helper.make_node("Cast", ["a"], ["d"], to=TensorProto.FLOAT),
    ]
    kinds = [(name, TensorProto.FLOAT, shape) for name in "xabcd"]
    graph = model_bytes(nodes, kinds[:1], kinds[1:])
    x = np.array([[1, -2]], np.float32)
    for precision in ("fp32", half):
        with OpenVinoEngine(graph, precision=precision) as engine:
            found = engine.run({"x": x})
        assert {name: array.tolist() for name, array in found.items()} == {
            "a": [[1, 0]],
            "b": [[1, 0]],
            "c": [[1, -2]],
            "d": [[1, 0]],
        }


def test_an_operator_that_openvino_lacks():
    graph = model_bytes(
        [helper.make_node("Foo", ["x"], ["y"], domain="strange")],
        [("x", TensorProto.FLOAT, [1])],
        [("y", TensorProto.FLOAT, [1])],
    )
    with pytest.raises(InputError, match=r"strange\.Foo.*--engine onnxruntime"):
        OpenVinoEngine(graph)


def test_other_formats_are_no_onnx(tmp_path):
    """OpenVINO would read a file of its own format under any name."""
    path = tmp_path / "model.onnx"
    path.write_text('<?xml version="1.0"?><net name="m" version="11"></net>')
    with pytest.raises(InputError):
        OpenVinoEngine(path)


def test_external_data_is_not_followed(tmp_path):
    model = onnx.ModelProto.FromString(linear())
    ones = np.ones((12, 1), np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(ones, "ones"))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    with pytest.raises(InputError):
        OpenVinoEngine(path)


def test_out_of_memory_is_no_fault_of_the_model(images):
    class Full:
        def infer(self, feeds, share_inputs):
            raise RuntimeError("Exception from src/core.cpp:1:\nstd::bad_alloc")

    engine = OpenVinoEngine(linear())
    engine._request = Full()
    with pytest.raises(CapabilityError, match="out of memory: std::bad_alloc; lower the batch"):
        engine.run({"x": images})


def test_an_unknown_device():
    with pytest.raises(UsageError, match="'TPU' is unknown"):
        OpenVinoEngine(linear(), device="TPU")
