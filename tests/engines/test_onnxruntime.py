"""The ONNX Runtime engine: results, refusals, and no silent fallback."""

import contextlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from svit_deploy.engines import onnxruntime as runtime
from svit_deploy.engines import provider_choice
from svit_deploy.engines.base import TensorSpec
from svit_deploy.engines.onnxruntime import (
    OnnxRuntimeEngine,
    available_providers,
    require_provider,
)
from svit_deploy.engines.onnxruntime_log import one_line
from svit_deploy.engines.providers import full_provider_name, install_fix
from svit_deploy.errors import CapabilityError, InputError, UsageError
from svit_deploy.graph.builder import FLOAT, GraphBuilder
from svit_deploy.graph.check import finish
from svit_deploy.graph.layers import Layers
from tests.engines.graphs import dynamic, linear, model_bytes
from tests.engines.tensorrt.fake.cuda import Device, make_cuda


@pytest.fixture
def images() -> np.ndarray:
    return np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)


def test_runs_and_describes_itself(images, tmp_path):
    path = tmp_path / "a model.onnx"
    path.write_bytes(linear())
    with OnnxRuntimeEngine(path, threads=1) as engine:
        assert engine.inputs() == (TensorSpec("x", np.dtype("float32"), ("B", 3, 2, 2)),)
        assert [spec.name for spec in engine.outputs()] == ["sum", "positive"]
        assert engine.description == {
            "runtime": "onnxruntime",
            "version": onnxruntime.__version__,
            "provider": "CPUExecutionProvider",
            "threads": 1,
            "graph_optimization": "all",
        }
        outputs = engine.run({"x": images})
    np.testing.assert_array_equal(outputs["sum"], images.reshape(2, -1).sum(1, keepdims=True))
    assert outputs["positive"].sum() == 23


@pytest.mark.parametrize("level", ["none", "basic", "extended", "all"])
def test_every_optimization_level_gives_the_same(images, level):
    with OnnxRuntimeEngine(linear(), graph_optimization=level) as engine:
        assert engine.run({"x": images})["sum"].ravel().tolist() == [66, 210]


UNKNOWN_OPERATOR = model_bytes(
    [helper.make_node("Foo", ["x"], ["y"], domain="strange")],
    [("x", TensorProto.FLOAT, [1])],
    [("y", TensorProto.FLOAT, [1])],
)
FUTURE = onnx.ModelProto.FromString(dynamic())
FUTURE.ir_version = 99


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "could not be loaded"),
        (b"<!DOCTYPE html><title>404</title>", "could not be loaded"),
        (b"version https://git-lfs.github.com/spec/v1\n", "could not be loaded"),
        (linear()[:-40], "could not be loaded"),
        (UNKNOWN_OPERATOR, "strange:Foo"),
        (FUTURE.SerializeToString(), "could not be loaded: Unsupported model IR version: 99"),
    ],
    ids=["empty", "html", "lfs pointer", "truncated", "custom operator", "future format"],
)
@pytest.mark.parametrize("as_bytes", [True, False])
def test_a_broken_model_is_one_sentence(tmp_path, capfd, content, message, as_bytes):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        OnnxRuntimeEngine(content if as_bytes else path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_missing_external_data_is_an_input_error(tmp_path):
    model = onnx.ModelProto.FromString(linear())
    weight = model.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(np.ones((12, 1), np.float32), "ones"))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    (tmp_path / "weights").unlink()
    with pytest.raises(InputError, match="weights"):
        OnnxRuntimeEngine(path)


def test_an_input_type_without_numpy_counterpart(tmp_path):
    identity = model_bytes(
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.BFLOAT16, [1])],
        [("y", TensorProto.BFLOAT16, [1])],
    )
    with pytest.raises(InputError, match="bfloat16"):
        OnnxRuntimeEngine(identity)


def test_a_graph_that_fails_while_running(capfd):
    gather = model_bytes(
        [helper.make_node("Gather", ["x", "i"], ["y"])],
        [("x", TensorProto.FLOAT, [2]), ("i", TensorProto.INT64, [1])],
        [("y", TensorProto.FLOAT, [1])],
    )
    with OnnxRuntimeEngine(gather) as engine, pytest.raises(InputError, match="failed while runn"):
        engine.run({"x": np.zeros(2, np.float32), "i": np.array([7])})
    assert capfd.readouterr() == ("", "")


LOGGED = b"\x1b[1;31m2026-01-01 [E:onnxruntime:Default, env.cc:1 Run()] affinity\x1b[m\n"


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_what_the_library_logs_of_a_bad_graph_stays_off_the_terminal(monkeypatch, capfd, provider):
    def fail(*args, **options):
        os.write(2, LOGGED)
        print("python's part")
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : the graph is odd")

    severities = []
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", make_cuda(Device()))
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", severities.append)
    with pytest.raises((InputError, CapabilityError), match="the graph is odd"):
        OnnxRuntimeEngine(linear(), provider=provider)
    assert capfd.readouterr() == ("", "")
    assert severities[-1] == 4  # fatal: runs are timed, and what they print is not captured


def test_what_the_import_of_the_library_prints_stays_off_the_terminal(monkeypatch, capfd, tmp_path):
    source = f"import os; os.write(2, {LOGGED!r}); raise ImportError('no libfoo.so')"
    (tmp_path / "onnxruntime.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "onnxruntime")
    with pytest.raises(CapabilityError, match="no libfoo"):
        available_providers()
    assert capfd.readouterr() == ("", "")


PLACE = "/onnxruntime_src/onnxruntime/core/providers/cpu/tensor/reshape_helper.h:84 "


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while "
            f"running If node. Name:'' Status Message: Non-zero status code returned while running "
            f"Reshape node. Name:'block_2/Reshape' Status Message: {PLACE}"
            "onnxruntime::ReshapeHelper::ReshapeHelper(const onnxruntime::TensorShape&, bool) "
            "size == 7 was false. Shapes do not fit.\n",
            "If: Reshape 'block_2/Reshape': size == 7 was false. Shapes do not fit",
        ),
        (
            f"[ONNXRuntimeError] : 1 : FAIL : Exception during initialization: {PLACE}"
            "onnxruntime::Div<T>::Div(const onnxruntime::OpKernelInfo&) [with T = long int] "
            "Integer division by zero",
            "Integer division by zero",
        ),
        ("\x1b[1;31mred " + "x" * 999, "red " + "x" * 233 + "..."),
    ],
)  # fmt: skip
def test_the_reason_is_kept_and_short(message, reason):
    assert one_line(message) == reason


def test_a_provider_is_required_by_running_it(monkeypatch):
    require_provider("cpu")
    onnx.checker.check_model(onnx.ModelProto.FromString(runtime._DOUBLE), full_check=True)
    with pytest.raises(UsageError, match="provider 'gpu' is unknown"):
        require_provider("gpu")

    class Broken(OnnxRuntimeEngine):
        def run(self, feeds, outputs=None):
            raise CapabilityError("no kernel image for this device", "")

    monkeypatch.setattr(runtime, "OnnxRuntimeEngine", Broken)
    with pytest.raises(CapabilityError, match="no kernel image"):
        require_provider("cpu")


def test_out_of_memory_is_no_fault_of_the_model(images):
    class Full:
        def run(self, names, feeds):
            raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc")

    engine = OnnxRuntimeEngine(linear())
    engine._session = Full()
    with pytest.raises(CapabilityError, match="out of memory: std::bad_alloc; lower the batch"):
        engine.run({"x": images})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"provider": "gpu"}, "'gpu' is unknown; use one of cpu, cuda"),
        ({"graph_optimization": "max"}, "use one of none, basic, extended, all"),
        ({"threads": -1}, "threads"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(UsageError, match=message):
        OnnxRuntimeEngine(linear(), **options)


def test_provider_names():
    assert "CPUExecutionProvider" in available_providers()
    assert full_provider_name("CUDA") == "CUDAExecutionProvider"
    assert full_provider_name("VitisAIExecutionProvider") == "VitisAIExecutionProvider"


@pytest.mark.parametrize(
    ("provider", "gpu"), [("cpu", None), ("cuda", 0), ("tensorrt", 0), ("openvino", None)]
)
def test_which_gpu_it_runs_on(provider, gpu):
    engine = OnnxRuntimeEngine(linear())
    engine._provider = full_provider_name(provider)
    assert engine.nvidia_gpu == gpu


def test_a_provider_of_another_package_names_the_package(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(CapabilityError, match=r"only CPU\w+; .*onnxruntime-openvino"):
        OnnxRuntimeEngine(linear(), provider="openvino")


def test_a_silent_fallback_is_an_error_with_the_reason(monkeypatch, capfd):
    """What the GPU package does on a machine without CUDA libraries."""

    def fall_back(*args, **kwargs):
        log = (
            "\x1b[1;31m2026-01-01 [E:onnxruntime:Default, x.cc:1 Get()] "
            "[ONNXRuntimeError] : 1 : FAIL : Failed to load library libcublas.so.\n"
        )
        os.write(2, log.encode())
        return SimpleNamespace(
            disable_fallback=lambda: None, get_providers=lambda: ["CPUExecutionProvider"]
        )

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", make_cuda(Device()))
    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    with pytest.raises(CapabilityError) as caught:
        OnnxRuntimeEngine(linear(), provider="cuda")
    assert caught.value.message == (
        "CUDAExecutionProvider could not start and ONNX Runtime fell back to "
        "CPUExecutionProvider: Failed to load library libcublas.so"
    )
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("provider", "given"),
    [
        ("cuda", ("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "0"})),
        ("tensorrt", ("TensorrtExecutionProvider", {"device_id": "0"})),
        ("cpu", "CPUExecutionProvider"),
    ],
)
def test_a_provider_computes_in_float32_itself(monkeypatch, provider, given):
    """CUDA's rounds float32 to ten bits by default; TensorRT's must find its library loaded."""
    asked, imported = [], []

    def session(model, options, providers, **rest):
        asked.extend(providers)
        return real(model, options, providers=["CPUExecutionProvider"])

    real, full = onnxruntime.InferenceSession, full_provider_name(provider)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [full])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: imported.append("cuda"), raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    runtime = make_cuda(Device())

    def import_module(name):
        imported.append(name)
        return runtime

    monkeypatch.setattr(provider_choice.importlib, "import_module", import_module)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")
    del os.environ["NVIDIA_TF32_OVERRIDE"]  # and what is set from now on is forgotten
    with pytest.raises(CapabilityError) if provider != "cpu" else contextlib.nullcontext():
        OnnxRuntimeEngine(linear(), provider=provider)
    if provider != "cpu":  # beside what test_onnxruntime_device.py shows
        ((name, options),) = asked
        asked = [(name, {key: options[key] for key in given[1]})]
    assert asked == [given]
    libraries = {"cpu": [], "cuda": ["cuda"], "tensorrt": ["cuda", "tensorrt"]}
    others = ("onnxruntime", "cuda.bindings.runtime")
    assert [name for name in imported if name not in others] == libraries[provider]
    assert (os.environ.get("NVIDIA_TF32_OVERRIDE") == "0") == (provider == "tensorrt")


def test_tensorrts_provider_names_a_tensorrt_that_it_can_load():
    """It is linked to libnvinfer.so.10, and PyPI's tensorrt is a later one."""
    assert "'tensorrt-cu13<11'" in install_fix("TensorrtExecutionProvider")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_what_is_to_be_installed_is_what_the_wheel_is_linked_to(provider):
    """Of the very file that is here: the hint must follow when a release is linked otherwise."""
    file = Path(onnxruntime.__file__).parent / f"capi/libonnxruntime_providers_{provider}.so"
    if not file.is_file() or shutil.which("readelf") is None:
        pytest.skip(f"no {file.name} here, or no readelf")
    told = subprocess.run(["readelf", "-d", file], capture_output=True, text=True, check=True)
    needed = dict(re.findall(r"NEEDED.*\[(lib\w+)\.so\.(\d+)\]", told.stdout))
    assert not re.search("RPATH|RUNPATH", told.stdout), "it would find what pip installs"
    hint = install_fix(full_provider_name(provider))
    assert "'onnxruntime-gpu[cuda,cudnn]'" in hint
    if provider == "tensorrt":
        cuda, tensorrt = needed["libcudart"], int(needed["libnvinfer"])
        assert f"'tensorrt-cu{cuda}<{tensorrt + 1}'" in hint
    extras = importlib.metadata.requires("onnxruntime-gpu") or []
    brought = [one for one in extras if one.startswith(f"nvidia-cudnn-cu{needed['libcudart']}")]
    assert brought, "its extra brings libraries of another CUDA"


def test_fp8_is_left_as_it_is(tmp_path):
    """ONNX Runtime's own rewriting makes products that it has no kernels for."""
    random, builder = np.random.default_rng(0), GraphBuilder("linear", 20, "fp8")
    weight, x = (random.standard_normal(shape, np.float32) for shape in ((5, 8), (3, 8)))
    given = builder.input("x", FLOAT, ["n", 8])
    product = Layers(builder, {}, {"layer": 0.01}).product(given, "layer", weight, None)
    builder.output(builder.rename(product, "y"), FLOAT, ["n", 5])
    model = finish(builder.model(), {}, "1").SerializeToString()
    tensors = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.ModelProto.FromString(model).graph.initializer
    }
    rows, steps = tensors["layer.weight"], tensors["layer.weight.step"]
    rounded = (x / np.float32(0.01)).astype(rows.dtype).astype(np.float32) * np.float32(0.01)
    expected = rounded @ (rows.astype(np.float32) * steps[:, None]).T
    assert np.abs(rounded - x).max() > 0.01, "nothing is rounded"
    with OnnxRuntimeEngine(model, precision="fp8") as engine:
        np.testing.assert_allclose(engine.run({"x": x})["y"], expected, atol=1e-5)
    with pytest.raises(InputError, match="float8e4m3fn"):
        OnnxRuntimeEngine(model)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_provider_works_or_says_why_not(provider, images, capfd):
    if full_provider_name(provider) not in available_providers():
        pytest.skip("this ONNX Runtime has no such provider")
    try:
        with OnnxRuntimeEngine(linear(), provider=provider) as engine:
            assert engine.run({"x": images})["sum"].ravel().tolist() == [66, 210]
    except CapabilityError as error:
        assert error.fix.startswith(("run: pip install", "run on a machine with an NVIDIA GPU"))
    assert capfd.readouterr().out == ""


def test_without_onnxruntime(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CapabilityError, match=r"pip install 'svit-deploy\[cpu\]'"):
        OnnxRuntimeEngine(linear())


def test_without_a_place_for_temporary_files(monkeypatch, images):
    def refuse() -> None:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with OnnxRuntimeEngine(linear()) as engine:
        assert engine.run({"x": images})["sum"].ravel().tolist() == [66, 210]
