"""The TensorRT engine: what it computes, what it refuses, and what it leaves behind."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from svit_deploy.engines.base import TensorSpec
from svit_deploy.engines.device import slot
from svit_deploy.engines.device.cuda import Cuda, Gpu
from svit_deploy.engines.device.slot import MAX_SHAPES
from svit_deploy.engines.tensorrt import binding, loading
from svit_deploy.engines.tensorrt import rtx as rtx_names
from svit_deploy.engines.tensorrt.build import build_engine
from svit_deploy.engines.tensorrt.runner import TensorRTEngine
from svit_deploy.engines.tensorrt.sidecar import Sidecar
from svit_deploy.errors import CapabilityError, InputError, UsageError
from svit_deploy.graph.parts import BETWEEN
from svit_deploy.io.files import hash_file
from svit_deploy.machine.tensorrt import TARGETS, load_library
from svit_deploy.model.profiles import Profile
from tests.engines.tensorrt.fake import runtime
from tests.engines.tensorrt.fake.cuda import Device, Error
from tests.engines.tensorrt.fake.engines import (
    RTX_VERSION,
    VERSION,
    install,
    remove_sidecar,
    write_engine,
)

SMALL = Profile((1, 3, 4, 4), (2, 3, 4, 4), (4, 3, 4, 4))
LARGE = Profile((5, 3, 4, 4), (8, 3, 4, 4), (32, 3, 4, 4))
NOTHING = {"memory": 0, "pinned": 0, "streams": 0, "events": 0, "graphs": 0}


@pytest.fixture
def device(monkeypatch) -> Device:
    device = Device()
    install(monkeypatch, device)
    return device


def make_model(nodes, outputs, opset=17, shape=("B", 3, 4, 4)) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])
    made = [helper.make_tensor_value_info(*output) for output in outputs]
    graph = helper.make_graph(nodes, "test", [value], made, [zero])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def largest_pixel() -> onnx.ModelProto:
    """The largest pixel in every type of output: float32, float16, int64, int32, bool."""
    cast = {"half": TensorProto.FLOAT16, "long": TensorProto.INT64, "int": TensorProto.INT32}
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("ReduceMax", ["flat"], ["logits"], axes=[1], keepdims=1),
        *(helper.make_node("Cast", ["logits"], [name], to=to) for name, to in cast.items()),
        helper.make_node("Greater", ["logits", "zero"], ["positive"]),
    ]
    types = {"logits": TensorProto.FLOAT, **cast, "positive": TensorProto.BOOL}
    return make_model(nodes, [(name, kind, ["B", 1]) for name, kind in types.items()])


def positives() -> onnx.ModelProto:
    """How many pixels are above 0: their places, as many as there are."""
    nodes = [
        helper.make_node("Relu", ["images"], ["logits"]),
        helper.make_node("NonZero", ["logits"], ["places"]),
    ]
    shape = ["B", 3, 4, 4]
    outputs = [("logits", TensorProto.FLOAT, shape), ("places", TensorProto.INT64, [4, None])]
    return make_model(nodes, outputs)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 4, 4), np.float32)


@pytest.fixture
def engine_file(tmp_path) -> Path:
    return write_engine(tmp_path / "model.engine", largest_pixel(), (SMALL, LARGE))


def test_computes_every_output_in_its_own_type(device, engine_file):
    x = 10 * images(3)
    largest = x.reshape(3, -1).max(axis=1, keepdims=True)
    with TensorRTEngine(engine_file) as engine:
        assert engine.inputs() == (TensorSpec("images", np.dtype("float32"), ("?", 3, 4, 4)),)
        found = engine.run({"images": x})
    assert {name: array.dtype.name for name, array in found.items()} == {
        "logits": "float32",
        "half": "float16",
        "long": "int64",
        "int": "int32",
        "positive": "bool",
    }
    np.testing.assert_array_equal(found["logits"], largest)
    np.testing.assert_array_equal(found["half"], largest.astype(np.float16))
    np.testing.assert_array_equal(found["long"], largest.astype(np.int64))
    np.testing.assert_array_equal(found["positive"], largest > 0)


def test_results_stay_when_the_next_run_overwrites_the_buffers(device, engine_file):
    with TensorRTEngine(engine_file) as engine:
        first = engine.run({"images": images(2)})["logits"]
        kept = first.copy()
        engine.run({"images": images(2, seed=1)})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("cuda_graph", ["on", "off"])
def test_batches_of_both_profiles_in_any_order(device, engine_file, cuda_graph):
    with TensorRTEngine(engine_file, cuda_graph=cuda_graph) as engine:
        for seed, count in enumerate((2, 32, 2, 1, 2, 32, 5, 1, 4)):
            x = images(count, seed)
            found = engine.run({"images": x}, ["logits"])
            assert list(found) == ["logits"]
            np.testing.assert_array_equal(found["logits"][:, 0], x.reshape(count, -1).max(axis=1))
            assert engine.last_times.profile == (0 if count <= 4 else 1)


def test_only_the_outputs_asked_for_are_copied(device, engine_file):
    with TensorRTEngine(engine_file, cuda_graph="off") as engine:
        engine.run({"images": images(1)})
        device.calls.clear()
        assert engine.run({"images": images(1)}, []) == {}
    assert device.calls.count("cudaMemcpyAsync") == 1


def test_strided_arrays_are_fine(device, engine_file):
    x = images(2)
    with TensorRTEngine(engine_file) as engine:
        found = engine.run({"images": x[::-1, :, ::-1]})["logits"]
    np.testing.assert_array_equal(found[::-1, 0], x.reshape(2, -1).max(axis=1))


def test_buffers_are_reused_and_grow(device, engine_file):
    with TensorRTEngine(engine_file, cuda_graph="off") as engine:
        engine.run({"images": images(4)})
        device.calls.clear()
        engine.run({"images": images(1)})
        engine.run({"images": images(4)})
        assert "cudaMalloc" not in device.calls
        engine.run({"images": images(9)})
        assert "cudaMalloc" in device.calls


def test_a_profile_adds_up_to_the_time_on_the_gpu(device, tmp_path):
    layers = [
        {
            "Name": "__myl_FcAdd_myl0_4",
            "LayerType": "gemm",
            "Metadata": "[ONNX Layer: block_0/mlp/Gemm]\x1e[ONNX Layer: block_0/mlp/Gelu]",
        },
        {"Name": "_gemm_mha_v2_myl0_7", "LayerType": "kgen", "Metadata": ""},
        "block_1/mlp/Gemm + block_1/mlp/Add",
    ]
    file = write_engine(tmp_path / "m.engine", largest_pixel(), (SMALL, LARGE), layers=layers)
    with TensorRTEngine(file, cuda_graph="on") as engine:
        engine.run({"images": images(2)})
        times = engine.profile([{"images": images(2)}, {"images": images(9)}], ["logits"])
        engine.run({"images": images(2)})
        assert engine.last_times.graph
    assert [(one.nodes, one.operator) for one in times] == [
        (("block_0/mlp/Gemm", "block_0/mlp/Gelu"), "gemm"),
        (("_gemm_mha_v2",), "fused_attention"),
        (("block_1/mlp/Gemm", "block_1/mlp/Add"), ""),
        ((), BETWEEN),
    ]
    assert [one.seconds for one in times[:3]] == pytest.approx([1e-3 / 3] * 3)
    assert sum(one.seconds for one in times) == pytest.approx(2e-3)
    assert device.open == NOTHING


def test_times_of_the_last_run_by_the_device_clock(device, engine_file):
    with TensorRTEngine(engine_file, cuda_graph="off") as engine:
        assert engine.last_times is None
        engine.run({"images": images(1)}, ["logits", "half"])
        times = engine.last_times
    assert times.gpu_ms == 2
    assert times.h2d_ms == device.copy_ms
    assert times.d2h_ms == 2 * device.copy_ms
    assert 0 < times.enqueue_ms < 1000
    assert times.graph is False


def test_describes_itself(device, engine_file):
    with TensorRTEngine(engine_file) as engine:
        engine.run({"images": images(1)})
        about = engine.description
    assert json.loads(json.dumps(about)) == {
        "runtime": "tensorrt",
        "version": VERSION,
        "gpu": {"name": "NVIDIA Fake 9000", "compute_capability": "9.0"},
        "precision": "fp16",
        "profiles": ["1x3x4x4 to 4x3x4x4", "5x3x4x4 to 32x3x4x4"],
        "cuda_graph": {"mode": "auto", "used": True, "reason": None},
        "kernels": None,
        "layers": None,
    }


def test_everything_is_freed(device, engine_file):
    engine = TensorRTEngine(engine_file)
    for count in (1, 2, 8, 1):
        engine.run({"images": images(count)})
    assert device.open["graphs"] == 3
    engine.close()
    engine.close()
    assert device.open == NOTHING
    with pytest.raises(RuntimeError, match="closed"):
        engine.run({"images": images(1)})


def test_the_shape_used_longest_ago_makes_room(device, engine_file):
    with TensorRTEngine(engine_file) as engine:
        engine.run({"images": images(32)})  # the buffers are large enough from now on
        used = []
        for count in (*range(1, MAX_SHAPES), 32, 1, 20, 1, 2):
            x = images(count)
            found = engine.run({"images": x})["logits"]
            np.testing.assert_array_equal(found[:, 0], x.reshape(count, -1).max(axis=1))
            used.append(engine.last_times.graph)
        assert used[MAX_SHAPES - 1 :] == [True, True, False, True, False]  # 20 took the place of 2
        assert device.open["graphs"] == MAX_SHAPES


def test_a_size_that_depends_on_the_data(device, tmp_path):
    path = write_engine(tmp_path / "m.engine", positives(), (SMALL,), data_dependent=["places"])
    with TensorRTEngine(path) as engine:
        assert engine.outputs()[1].shape == (4, "?")
        for x in (images(1), images(3), -np.abs(images(2)), np.abs(images(4))):
            found = engine.run({"images": x})
            np.testing.assert_array_equal(found["places"], np.stack(np.nonzero(x > 0)))
            np.testing.assert_array_equal(found["logits"], np.maximum(x, 0))
        assert not engine.last_times.graph
    assert device.open == NOTHING


def test_out_of_memory_for_an_output_of_unknown_size(device, tmp_path):
    path = write_engine(tmp_path / "m.engine", positives(), (SMALL,), data_dependent=["places"])
    with TensorRTEngine(path) as engine:
        engine.run({"images": -np.abs(images(4))})  # nothing found yet
        device.capacity = device.used()
        with pytest.raises(CapabilityError, match=r"GPU is out of memory; lower the batch size"):
            engine.run({"images": np.abs(images(4))})
        device.capacity = 1 << 30
        assert engine.run({"images": np.abs(images(4))})["places"].shape == (4, 4 * 48)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "no array was fed for 'images'"),
        ({"x": images(1)}, "the model has no input 'x'; feed 'images'"),
        ({"images": images(1).astype(np.float16)}, "is float16, the model takes float32"),
        ({"images": images(1)[:, :2]}, r"shape \[1, 2, 4, 4\], the model takes \[\?, 3, 4, 4\]"),
        (
            {"images": images(33)},
            r"does not serve the shape 33x3x4x4, only 1x3x4x4 to 4x3x4x4 \(profile 0\), 5x3x4x4 to "
            r"32x3x4x4 \(profile 1\); nearest is profile 1; feed a shape within it, or build",
        ),
    ],
)
def test_feeds_that_do_not_fit_are_refused_in_words(device, engine_file, feeds, message):
    with TensorRTEngine(engine_file) as engine, pytest.raises(InputError, match=message):
        engine.run(feeds)


def test_shapes_that_cannot_be_inferred(device, engine_file, monkeypatch):
    """The bindings then raise, where the library gives an error code."""

    def fail(self):
        raise RuntimeError("infer_shapes error code: -1")

    monkeypatch.setattr(runtime.IExecutionContext, "infer_shapes", fail)
    sentence = r"model\.engine refused the shape \[1, 3, 4, 4\] by TensorRT"
    with TensorRTEngine(engine_file) as engine, pytest.raises(InputError, match=sentence):
        engine.run({"images": images(1)})


def test_an_unknown_output_is_refused(device, engine_file):
    sentence = "no output 'depth'; ask for 'logits'"
    with TensorRTEngine(engine_file) as engine, pytest.raises(InputError, match=sentence):
        engine.run({"images": images(1)}, ["depth"])


def refused(path: Path, **options) -> str:
    """The sentence that an engine is refused with, before anything is deserialised."""
    with pytest.raises(InputError) as caught:
        TensorRTEngine(path, **options)
    assert caught.value.fix and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("sidecar", "sentence"),
    [
        ({"tensorrt": "10.3.0.26"}, f"was built by TensorRT 10.3.0.26, and {VERSION} is installed"),
        (
            {"gpu": Gpu("Orin", "8.7")},
            "was built for Orin (sm87), and this machine has NVIDIA Fake 9000 (sm90); build the "
            "engine again on this machine: svit-deploy export BUNDLE --target tensorrt.",
        ),
        ({"gpu": None}, "names no GPU"),
        ({"engine_sha256": "0" * 64}, "is not the engine that was built (size or sha256 differs)"),
        ({"engine_size": 7}, "is not the engine that was built"),
        ({"engine": "other.engine"}, "model.json"),
    ],
)
def test_an_engine_for_something_else_is_not_deserialised(
    device, tmp_path, monkeypatch, sidecar, sentence
):
    def deserialised(*_):
        raise AssertionError

    monkeypatch.setattr(sys.modules["tensorrt"].Runtime, "deserialize_cuda_engine", deserialised)
    path = write_engine(tmp_path / "model.engine", largest_pixel(), (SMALL,), sidecar=sidecar)
    if "engine" in sidecar:
        (tmp_path / "other.json").rename(tmp_path / "model.json")
    assert sentence in refused(path)
    assert sentence in refused(path, allow_foreign=True)
    assert device.open == NOTHING


def test_without_a_sidecar_only_by_permission(device, engine_file, caplog):
    remove_sidecar(engine_file)
    assert "add --allow-foreign-engine if you trust the file" in refused(engine_file)
    with caplog.at_level(logging.WARNING, "svit_deploy"):
        engine = TensorRTEngine(engine_file, allow_foreign=True)
    assert "nothing says where its native code is from" in caplog.text
    with engine:
        assert engine.profiles == (SMALL, LARGE)
        assert engine.description["precision"] is None
        x = images(6)
        found = engine.run({"images": x})["logits"]
    np.testing.assert_array_equal(found[:, 0], x.reshape(6, -1).max(axis=1))


def test_host_code_in_an_engine_stays_forbidden(device, engine_file):
    with TensorRTEngine(engine_file) as engine:
        assert engine._loaded.runtime.engine_host_code_allowed is False


@pytest.mark.parametrize("seen", [True, False], ids=["with sidecar", "foreign"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty; copy it again"),
        (b"<!DOCTYPE html>", "could not be loaded by TensorRT"),
        (b"version https://git-lfs.github.com/spec/v1\n", "header.magicTag == kEXPECTED_MAGIC_TAG"),
        (b"\x11\x00\x00\x00" + b'{"stride": "32" }' + b"ftrt", "17 bytes of JSON in front of the"),
        (None, "plan.header.size == blobSize failed"),  # cut short
    ],
    ids=["empty", "html", "lfs pointer", "ultralytics", "truncated"],
)
def test_what_is_no_engine_is_one_sentence(device, engine_file, content, sentence, seen):
    engine_file.write_bytes(engine_file.read_bytes()[:-9] if content is None else content)
    if not seen:
        remove_sidecar(engine_file)
    found = refused(engine_file, allow_foreign=not seen)
    assert sentence in found or (seen and "is not the engine that was built" in found)
    assert device.open == NOTHING


def test_a_path_that_is_no_file(device, tmp_path):
    assert "is not a file; give the path of an .engine file" in refused(tmp_path)
    assert "is not a file" in refused(tmp_path / "absent.engine")


def test_a_foreign_engine_of_another_version_says_what_the_library_says(device, tmp_path):
    path = write_engine(tmp_path / "m.engine", largest_pixel(), (SMALL,), version="8.6.1")
    found = refused(remove_sidecar(path), allow_foreign=True)
    assert "Error Code 1: Serialization (Serialization assertion stdVersionRead" in found


def test_an_rtx_engine_runs_on_any_gpu(device, tmp_path):
    path = write_engine(
        tmp_path / "m.engine",
        largest_pixel(),
        (SMALL,),
        library="tensorrt_rtx",
        version=RTX_VERSION,
        sidecar={"gpu": None},
    )
    device.capability = (12, 0)
    for foreign in (False, True):
        if foreign:
            remove_sidecar(path)
        with TensorRTEngine(path, allow_foreign=foreign) as engine:
            engine.run({"images": images(1)})
            engine.run({"images": images(1)})
            assert engine.description["runtime"] == "tensorrt-rtx"
            assert engine.last_times.graph


def test_tensors_that_cannot_be_fed_or_read(device, tmp_path):
    shape = ["B", 3, 4, 4]
    node = helper.make_node("Cast", ["images"], ["logits"], to=TensorProto.BFLOAT16)
    bfloat = make_model([node], [("logits", TensorProto.BFLOAT16, shape)], opset=21)
    flat = helper.make_node("Relu", ["images"], ["logits"])
    rank2 = make_model([flat], [("logits", TensorProto.FLOAT, ["B", 3])], shape=["B", 3])
    for name, model, options, sentence in (
        ("a", bfloat, {}, "'logits' is BF16, which has no NumPy type"),
        ("b", largest_pixel(), {"on_host": ["logits"]}, "wants 'logits' in host memory"),
        ("c", rank2, {}, "takes images ['?', 3], not one batch of images"),
    ):
        path = write_engine(tmp_path / f"{name}.engine", model, (SMALL,), **options)
        assert sentence in refused(path)
        assert device.open == NOTHING


def write_with_plugins(tmp_path: Path, sha256: str) -> Path:
    return write_engine(
        tmp_path / "m.engine",
        largest_pixel(),
        (SMALL,),
        plugins=["libsvit_trt.so"],
        sidecar={"plugins": (("libsvit_trt.so", sha256),)},
    )


def test_the_plugin_library_is_found_checked_and_loaded(device, tmp_path, monkeypatch):
    library = tmp_path / "libsvit_trt.so"
    library.write_bytes(b"\x7fELF")
    path = write_with_plugins(tmp_path, hash_file(library))
    with TensorRTEngine(path, plugin_library=library) as engine:
        engine.run({"images": images(1)})
    monkeypatch.setattr(loading, "library_path", lambda: library)
    with TensorRTEngine(path) as engine, TensorRTEngine(path) as twice:
        engine.run({"images": images(1)})
        twice.run({"images": images(1)})
    library.write_bytes(b"\x7fELF of another build")
    assert "was built with another libsvit_trt.so than" in refused(path)


def test_an_rtx_engine_with_plugins_wants_the_short_name_of_its_library(
    device, tmp_path, monkeypatch
):
    """Without it the process would end; the fix names a folder that has it from then on."""
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path))
    library = tmp_path / "libsvit_trt.so"
    library.write_bytes(b"\x7fELF")
    plugins = (("libsvit_trt.so", hash_file(library)),)
    rtx = {"library": "tensorrt_rtx", "version": RTX_VERSION, "plugins": ["libsvit_trt.so"]}
    path = write_engine(
        tmp_path / "m.engine",
        largest_pixel(),
        (SMALL,),
        sidecar={"plugins": plugins, "gpu": None},
        **rtx,
    )
    known = []

    def find(name):
        if name not in known:
            raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(rtx_names.ctypes, "CDLL", find)
    with pytest.raises(CapabilityError, match=r"start again with LD_LIBRARY_PATH=(\S+),") as caught:
        TensorRTEngine(path, plugin_library=library)
    if importlib.util.find_spec("tensorrt_rtx_libs"):
        folder = caught.value.fix.split("=")[1].split(",")[0]
        assert (Path(folder) / "libtensorrt_rtx.so").exists()
    known.append("libtensorrt_rtx.so")
    with TensorRTEngine(path, plugin_library=library) as engine:
        engine.run({"images": images(1)})


def test_the_plugin_library_is_missing(device, tmp_path, monkeypatch):
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path))
    path = write_with_plugins(tmp_path, "0" * 64)
    with pytest.raises(CapabilityError, match=r"no TensorRT plugin library .*plugins build"):
        TensorRTEngine(path)
    assert "absent.so is not a file" in refused(path, plugin_library=tmp_path / "absent.so")


def test_a_plugin_library_that_does_not_load(device, tmp_path, monkeypatch):
    library = tmp_path / "libsvit_trt.so"
    library.write_bytes(b"")
    path = write_with_plugins(tmp_path, hash_file(library))
    registry = type("Registry", (), {"load_library": lambda self, plugin_path: None})
    monkeypatch.setattr(
        sys.modules["tensorrt"].Runtime, "get_plugin_registry", lambda self: registry()
    )
    with pytest.raises(
        CapabilityError, match=r"10\.16\.1\.11 cannot use the plugin library .*plugins b"
    ):
        TensorRTEngine(path, plugin_library=library)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("tensorrt", r"pip install 'svit-deploy\[tensorrt\]'"),
        ("cuda.bindings.runtime", "pip install cuda-bindings"),
    ],
)
def test_a_missing_package_names_the_command_that_installs_it(
    device, engine_file, monkeypatch, name, command
):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CapabilityError, match=f"run: {command}"):
        TensorRTEngine(engine_file)


def test_an_old_driver(device, engine_file):
    device.driver, device.runtime = 12040, 13020
    with pytest.raises(CapabilityError) as caught:
        TensorRTEngine(engine_file)
    assert str(caught.value) == (
        "the NVIDIA driver is too old: it supports CUDA 12.4, and the installed cuda-bindings need "
        "13.0; upgrade the driver, or run: pip install 'cuda-bindings==12.*'."
    )
    device.driver = 0
    with pytest.raises(CapabilityError, match=r"no NVIDIA driver .*--provider cpu"):
        TensorRTEngine(engine_file)


def test_no_gpu(device, engine_file, monkeypatch):
    device.count = 0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(CapabilityError, match="no NVIDIA GPU was found"):
        TensorRTEngine(engine_file)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(CapabilityError, match="CUDA_VISIBLE_DEVICES is '', which hides every GPU"):
        TensorRTEngine(engine_file)


def test_the_host_waits_without_sleeping(device, engine_file):
    with TensorRTEngine(engine_file):
        assert "cudaSetDeviceFlags" in device.calls


def test_the_device_asked_for(device, engine_file):
    with pytest.raises(UsageError, match=r"no GPU 1, only 1 .*--device a number below 1"):
        TensorRTEngine(engine_file, device=1)
    device.count = 2
    with TensorRTEngine(engine_file, device=1) as engine:
        device.current = 0
        engine.run({"images": images(1)})
        assert device.current == 1


def test_out_of_memory_is_no_fault_of_the_engine(device, engine_file):
    with TensorRTEngine(engine_file) as engine:
        device.capacity = device.used() + 5000
        with pytest.raises(CapabilityError, match="the GPU is out of memory; lower the batch size"):
            engine.run({"images": images(32)})
        x = images(1)
        found = engine.run({"images": x})["logits"]  # and it goes on
    np.testing.assert_array_equal(found[:, 0], x.reshape(1, -1).max(axis=1))
    assert device.open == NOTHING


def test_out_of_memory_for_a_context(device, engine_file):
    with TensorRTEngine(engine_file) as engine:
        device.failures["create_execution_context"] = [Error.cudaErrorMemoryAllocation]
        with pytest.raises(CapabilityError, match="out of memory: Error Code 2: OutOfMemory"):
            engine.run({"images": images(1)})
    assert device.open == NOTHING


def test_a_constructor_that_fails_frees_what_it_made(device, engine_file):
    device.failures["cudaEventCreate"] = [Error.cudaErrorMemoryAllocation]
    with pytest.raises(CapabilityError, match="out of memory"):
        TensorRTEngine(engine_file)
    assert device.open == NOTHING


def test_a_run_that_the_library_refuses(device, engine_file):
    with TensorRTEngine(engine_file) as engine:
        device.failures["execute_async_v3"] = [Error.cudaErrorLaunchFailure]
        with pytest.raises(InputError, match=r"model\.engine could not be run by .*LaunchFailure"):
            engine.run({"images": images(1)})
        assert engine.last_times is None
        engine.run({"images": images(1)})


def test_an_error_on_the_device(device, engine_file):
    with TensorRTEngine(engine_file, cuda_graph="off") as engine:
        engine.run({"images": images(1)})
        device.sticky = Error.cudaErrorIllegalAddress
        with pytest.raises(CapabilityError, match="cudaStreamSynchronize failed: IllegalAddress"):
            engine.run({"images": images(1)})
    assert device.open == NOTHING


def test_runs_what_the_builder_makes(device, graph, settings, fake_process):
    file = graph()
    sidecar = build_engine(file, file.parent, settings())
    with TensorRTEngine(file.parent / sidecar.engine) as engine:
        x = images(2)
        np.testing.assert_array_equal(engine.run({"images": x})["logits"], np.maximum(x, 0))
        assert engine.description["precision"] == "fp16"


def test_the_real_library_logs_and_allocates_through_ours(monkeypatch, tmp_path):
    """As far as TensorRT-RTX goes without a GPU: it reads the file, and says what is wrong."""
    library = pytest.importorskip("tensorrt_rtx")
    device = Device()
    install(monkeypatch, device)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", library)
    path = write_engine(
        tmp_path / "m.engine",
        largest_pixel(),
        (SMALL,),
        library="tensorrt_rtx",
        version=library.__version__,
    )
    sentence = refused(path)
    assert f"could not be loaded by TensorRT-RTX {library.__version__}: IRuntime" in sentence
    assert "/_src/" not in sentence
    allocator = binding._make_allocator(library, Cuda())
    assert isinstance(allocator, library.IOutputAllocator)
    address = allocator.reallocate_output_async("x", 0, 100, 256, 0)
    assert address == allocator.reallocate_output("x", address, 50, 256) == allocator.buffer.address
    allocator.notify_shape("x", library.Dims((2, 3)))
    assert allocator.shape == (2, 3)


@pytest.fixture
def real_engine(tmp_path) -> Path:
    """An engine built by the library that is installed here, for the GPU that is here."""
    try:
        cuda = Cuda()
    except CapabilityError as error:
        pytest.skip(error.message)
    for target in TARGETS:
        try:
            library = load_library(target)
            break
        except CapabilityError as error:
            reason = error.message
    else:
        pytest.skip(reason)
    trt = library.trt
    builder = trt.Builder(loading.logger_of(library))
    network = builder.create_network(library.bit("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"))
    parser = trt.OnnxParser(network, loading.logger_of(library))
    assert parser.parse(largest_pixel().SerializeToString())
    config = builder.create_builder_config()
    for profile in (SMALL, LARGE):
        shapes = builder.create_optimization_profile()
        shapes.set_shape("images", profile.min, profile.opt, profile.max)
        config.add_optimization_profile(shapes)
    path = tmp_path / "real.engine"
    path.write_bytes(builder.build_serialized_network(network, config))
    Sidecar(
        engine=path.name,
        engine_sha256=hash_file(path),
        engine_size=path.stat().st_size,
        onnx_sha256="0" * 64,
        target=target,
        tensorrt=library.version,
        precision="fp32",
        tokens="dense",
        profiles=(SMALL, LARGE),
        gpu=cuda.gpu,
    ).write(tmp_path)
    return path


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graph", ["auto", "off"])
def test_on_a_real_gpu(real_engine, cuda_graph):
    with TensorRTEngine(real_engine, cuda_graph=cuda_graph) as engine:
        for seed, count in enumerate((2, 32, 2, 1, 2, 32)):
            x = images(count, seed)
            found = engine.run({"images": x})
            np.testing.assert_array_equal(found["logits"][:, 0], x.reshape(count, -1).max(axis=1))
            np.testing.assert_array_equal(found["positive"], found["logits"] > 0)
            times = engine.last_times
            assert min(times.gpu_ms, times.h2d_ms, times.d2h_ms, times.enqueue_ms) > 0
            assert not times.graph or cuda_graph == "auto"


@pytest.mark.parametrize("in_flight", [1, 2, 3])
@pytest.mark.parametrize("cuda_graph", ["on", "off"])
def test_several_runs_in_flight(device, engine_file, monkeypatch, in_flight, cuda_graph):
    """Each has its own memory: nothing overwrites what another one has not given back yet."""
    found, most, open_runs = [], 0, 0
    start, finish = slot.Slot.start, slot.Slot.finish

    def begin(self, *args):
        nonlocal most, open_runs
        open_runs += 1
        most = max(most, open_runs)
        start(self, *args)

    def end(self):
        nonlocal open_runs
        open_runs -= 1
        found.append(finish(self)["logits"])
        return {"logits": found[-1]}

    monkeypatch.setattr(slot.Slot, "start", begin)
    monkeypatch.setattr(slot.Slot, "finish", end)
    feeds = [{"images": images(2, seed)} for seed in range(3)]
    with TensorRTEngine(engine_file, cuda_graph=cuda_graph) as engine:
        flight = engine.fly(feeds, ("logits",), 7, in_flight)
        timed = found[-7:]
        alone = [engine.run(feed, ["logits"])["logits"] for feed in feeds]
    assert (flight.in_flight, flight.runs, most) == (in_flight, 7, in_flight)
    assert flight.seconds > 0 and flight.device_ms > 0
    for number, array in enumerate(timed):
        np.testing.assert_array_equal(array, alone[number % 3])
    assert device.open == NOTHING


def test_fewer_runs_than_may_be_in_flight(device, engine_file):
    with TensorRTEngine(engine_file) as engine:
        assert engine.fly([{"images": images(1)}], None, 1, 4).runs == 1
        with pytest.raises(InputError, match="does not serve the shape 33x3x4x4"):
            engine.fly([{"images": images(33)}], None, 1, 2)
    assert device.open == NOTHING


def test_a_run_that_fails_leaves_no_other_one_under_way(device, engine_file, monkeypatch):
    feeds = [{"images": images(2)}]
    with TensorRTEngine(engine_file, cuda_graph="off") as engine:
        engine.fly(feeds, None, 2, 2)
        start, number = slot.Slot.start, iter(range(99))

        def begin(self, *args):
            if next(number) == 7:  # four of the warm-up, then the fourth: two are under way
                device.failures["execute_async_v3"] = [Error.cudaErrorLaunchFailure]
            start(self, *args)

        monkeypatch.setattr(slot.Slot, "start", begin)
        with pytest.raises(InputError, match="could not be run"):
            engine.fly(feeds, None, 6, 2)
        assert not any(one.is_running for one in engine._runs._slots)
        found = engine.run(feeds[0])["logits"]
    np.testing.assert_array_equal(found[:, 0], images(2).reshape(2, -1).max(axis=1))


def test_out_of_memory_for_another_run_in_flight(device, engine_file):
    with TensorRTEngine(engine_file) as engine:
        engine.run({"images": images(32)})
        device.capacity = device.used() + 5000
        with pytest.raises(CapabilityError, match="the GPU is out of memory; lower the batch size"):
            engine.fly([{"images": images(32)}], None, 4, 2)
        engine.run({"images": images(32)})  # and it goes on
    assert device.open == NOTHING
