"""NVIDIA's providers of ONNX Runtime: what they are told, and what is told of them."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from svit_deploy.engines import plugin_providers
from svit_deploy.engines.nvidia_providers import profile_of
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine, available_providers
from svit_deploy.engines.provider_choice import STREAM, count_nodes
from svit_deploy.engines.providers import CUDA, RTX_PROVIDER, TENSORRT_PROVIDER
from svit_deploy.errors import CapabilityError, UsageError
from svit_deploy.plugins import AUTOREGISTER, LIBRARY
from tests.engines.tensorrt.fake.cuda import Device, make_cuda

EXACT_CUDA = (CUDA, {"device_id": "0", "use_tf32": "0"})
PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"


def graph(
    *, batch: str = "1:4:8", size: tuple[Any, Any] = (32, 48), domain: str = "", **more: str
) -> bytes:
    """`images` -> `logits`, with the metadata of an export."""
    shape = ["batch", 3, *size]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("images", "y")]
    node = helper.make_node("Relu", ["images"], ["y"])
    made = helper.make_graph([node], "test", values[:1], values[1:])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    told = {"svit_deploy.batch": batch} | {f"svit_deploy.{k}": v for k, v in more.items()}
    helper.set_model_props(model, told)
    return model.SerializeToString()


def with_plugin() -> bytes:
    model = onnx.ModelProto.FromString(graph())
    model.graph.node[0].domain, model.graph.node[0].op_type = "trt.plugins", "SvitGather"
    return model.SerializeToString()


@pytest.fixture
def asked(monkeypatch, tmp_path) -> Callable[..., list[Any]]:
    """What a session is asked for: providers, or what its options then hold."""
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT_PROVIDER, CUDA])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    device = Device()
    device.count = 3
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", make_cuda(device))
    found: list[Any] = []

    class Options(onnxruntime.SessionOptions):
        def add_provider_for_devices(self, devices, options):
            found.append((devices[0].ep_name, devices[0].number, options))

        def add_provider(self, name, options):
            found.append((name, options))

    def session(model, options, providers, **rest):
        found.extend(providers or [])
        raise RuntimeError("enough seen")

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)

    def ask(model: Path | bytes, provider: str, **options: Any) -> list[Any]:
        found.clear()
        with pytest.raises(CapabilityError, match="enough seen"):
            OnnxRuntimeEngine(model, provider=provider, **options)
        for *_, told in found:  # of memory and stream: test_onnxruntime_device.py
            for name in (*STREAM, "enable_cuda_graph"):
                told.pop(name, None)
        return list(found)

    return ask


@pytest.fixture
def plugin(monkeypatch) -> list[str]:
    """The plugin provider's package, with two devices once it is registered."""
    registered: list[str] = []
    package = ModuleType(PACKAGE)
    package.__spec__ = importlib.util.spec_from_loader(PACKAGE, None)
    package.get_library_path = lambda: "/where/libprovider.so"
    monkeypatch.setitem(sys.modules, PACKAGE, package)

    def register(name: str, path: str) -> None:
        assert path == "/where/libprovider.so"
        registered.append(name)

    def devices() -> list[Any]:
        found = [SimpleNamespace(ep_name="CPUExecutionProvider", number=0, ep_options={})]
        for name, number in itertools.product(registered, (1, 0)):  # in no particular order
            told = {"device_id": str(number)}
            found.append(SimpleNamespace(ep_name=name, number=number, ep_options=told))
        return found

    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", register)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", devices)
    return registered


SHAPES = {
    "profile_min_shapes": "images:1x3x32x48",
    "profile_opt_shapes": "images:4x3x32x48",
    "profile_max_shapes": "images:8x3x32x48",
}


def test_tensorrt_gets_the_shapes_of_the_graph_and_cuda_behind_it(asked):
    first, *rest = asked(graph(), "tensorrt")
    assert first == (
        TENSORRT_PROVIDER, {"device_id": "0"} | {f"trt_{k}": v for k, v in SHAPES.items()}
    )  # fmt: skip
    assert rest == [EXACT_CUDA]


def test_the_plugin_provider_is_registered_once(asked, plugin):
    options = {f"nv_{k}": v for k, v in SHAPES.items()}
    for number in (1, 0):
        first, *rest = asked(graph(), "nv-tensorrt-rtx", device=number)
        assert first == (RTX_PROVIDER, number, options)
        assert rest == [(CUDA, {"device_id": str(number), "use_tf32": "0"})]
    assert plugin == [RTX_PROVIDER]
    assert RTX_PROVIDER in available_providers()
    with pytest.raises(UsageError, match="cannot run on device 2, only on 1, 0; give"):
        OnnxRuntimeEngine(graph(), provider="nv-tensorrt-rtx", device=2)


def test_what_is_built_of_a_file_is_kept_and_of_an_edited_graph_is_not(asked, plugin, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(graph())
    told = asked(path, "tensorrt")[0][1]
    folder = Path(told["trt_engine_cache_path"])
    assert folder.name == "tensorrt-nvidia-fake-9000" and folder.is_dir()
    assert folder.parent.parent == tmp_path / "cache" / "engines"
    assert folder.parent.name.endswith("-model.onnx.cache")
    assert told["trt_timing_cache_path"] == str(folder)
    assert told["trt_engine_cache_enable"] == told["trt_timing_cache_enable"] == "1"
    rtx = asked(path, "nv-tensorrt-rtx")[0][2]["nv_runtime_cache_path"]
    assert Path(rtx).name == "nv-tensorrt-rtx-nvidia-fake-9000"
    assert asked(path, "tensorrt")[0][1] == told
    own = {"trt_engine_cache_path": "/mine"}
    assert "trt_timing_cache_path" not in asked(path, "tensorrt", provider_options=own)[0][1]
    assert not any("cache" in name for name in asked(graph(), "tensorrt")[0][1])


def test_a_users_options_go_before_ours(asked, plugin):
    given = {"trt_profile_opt_shapes": "images:2x3x32x48", "trt_fp16_enable": "1"}
    told = asked(graph(), "tensorrt", provider_options=given)[0][1]
    assert told.items() >= given.items()
    assert told["trt_profile_max_shapes"] == "images:8x3x32x48"
    assert asked(graph(), "cuda", provider_options={"use_tf32": "1"}) == [
        (CUDA, {"device_id": "0", "use_tf32": "1"})
    ]


def test_a_refusal_with_options_points_at_them(asked):
    with pytest.raises(CapabilityError, match="; check --provider-option, or run: pip install"):
        OnnxRuntimeEngine(graph(), provider="cuda", provider_options={"use_tf23": "1"})


def test_the_plugin_library_goes_along_where_the_graph_has_plugins(asked, monkeypatch, tmp_path):
    name = "trt_extra_plugin_lib_paths"
    assert name not in asked(with_plugin(), "tensorrt")[0][1]  # none was built
    library = tmp_path / LIBRARY
    monkeypatch.setattr("svit_deploy.engines.nvidia_providers.library_path", lambda: library)
    assert asked(with_plugin(), "tensorrt")[0][1][name] == str(tmp_path / AUTOREGISTER)
    assert name not in asked(graph(), "tensorrt")[0][1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (graph(), ((1, 3, 32, 48), (4, 3, 32, 48), (8, 3, 32, 48))),
        (
            graph(
                batch="1:1:2",
                size=("h", "w"),
                image='{"min": [64, 64], "opt": [800, 1216], "max": [1344, 1344]}',
            ),
            ((1, 3, 64, 64), (1, 3, 800, 1216), (2, 3, 1344, 1344)),
        ),
        (graph(size=("h", "w")), None),
        (graph(batch="many"), None),
        (graph(image="[1"), None),
        (graph(image='{"min": 3}'), None),
    ],
)
def test_shapes_that_a_graph_is_for(content, expected):
    profile = profile_of(onnx.ModelProto.FromString(content))
    assert (profile and (profile.min, profile.opt, profile.max)) == expected


def test_which_nodes_went_where(caplog):
    def part(name: str, *operators: str) -> Any:
        nodes = [SimpleNamespace(op_type=operator) for operator in operators]
        return SimpleNamespace(ep_name=name, get_nodes=lambda: nodes)

    parts = [part(CUDA, "NonZero", "Gather", "NonZero"), part(TENSORRT_PROVIDER, *["MatMul"] * 9)]
    session = SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)
    caplog.set_level(logging.INFO)
    assert count_nodes(session, TENSORRT_PROVIDER) == {CUDA: 3, TENSORRT_PROVIDER: 9}
    assert caplog.messages == [
        "TensorrtExecutionProvider leaves nodes to CUDAExecutionProvider: 2 NonZero, 1 Gather"
    ]
    assert count_nodes(SimpleNamespace(), TENSORRT_PROVIDER) is None  # before ONNX Runtime 1.24


def test_the_real_runtime_tells_which_nodes_went_where():
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    cpu = "CPUExecutionProvider"
    session = onnxruntime.InferenceSession(graph(), options, providers=[cpu])
    if not hasattr(session, "get_provider_graph_assignment_info"):
        pytest.skip("this ONNX Runtime does not tell")
    assert count_nodes(session, cpu) == {cpu: 1}


def test_no_plugin_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", make_cuda(Device()))
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list)
    with pytest.raises(CapabilityError, match=r"not installed; .*onnxruntime-ep-nv-tensorrt-rtx"):
        OnnxRuntimeEngine(graph(), provider="nv-tensorrt-rtx")
    monkeypatch.delattr(onnxruntime, "register_execution_provider_library")
    with pytest.raises(CapabilityError, match=r"takes no plugin providers"):
        OnnxRuntimeEngine(graph(), provider="nv-tensorrt-rtx")


def test_a_plugin_without_a_device(monkeypatch, plugin):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", make_cuda(Device()))
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list)
    with pytest.raises(CapabilityError, match="finds no device that it can run on here"):
        OnnxRuntimeEngine(graph(), provider="nv-tensorrt-rtx")


def test_the_real_plugin_works_or_says_why_not():
    """Its package installs anywhere; without a driver its library cannot be loaded."""
    if RTX_PROVIDER not in plugin_providers.installed_plugins():
        pytest.skip("not installed: pip install onnxruntime-ep-nv-tensorrt-rtx")
    package = importlib.import_module(PACKAGE)
    assert package.get_ep_name() == RTX_PROVIDER and Path(package.get_library_path()).is_file()
    try:
        with OnnxRuntimeEngine(graph(), provider="nv-tensorrt-rtx") as engine:
            assert engine.description["nodes"]
    except CapabilityError as error:
        words = ("could not start", "finds no device", "no NVIDIA driver", "no NVIDIA GPU")
        assert any(part in error.message for part in words)
        assert "onnxruntime-ep-nv-tensorrt-rtx" in error.fix or "an NVIDIA GPU" in error.fix
