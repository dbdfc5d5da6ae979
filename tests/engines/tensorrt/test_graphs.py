"""CUDA graphs: what is captured when, what forbids it, and that a replay computes the same."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from svit_deploy.engines.tensorrt.runner import TensorRTEngine
from svit_deploy.errors import CapabilityError, UsageError
from svit_deploy.model.profiles import Profile
from tests.engines.tensorrt.fake.cuda import Device, Error
from tests.engines.tensorrt.fake.engines import RTX_VERSION, install, write_engine

PROFILE = Profile((1, 3, 4, 4), (2, 3, 4, 4), (8, 3, 4, 4))


@pytest.fixture
def device(monkeypatch) -> Device:
    device = Device()
    install(monkeypatch, device)
    return device


def relu(*outputs: str) -> onnx.ModelProto:
    """`logits` = relu(images), and where that is not 0."""
    shape = ["B", 3, 4, 4]
    values = {
        "logits": helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape),
        "places": helper.make_tensor_value_info("places", TensorProto.INT64, [4, None]),
    }
    nodes = [
        helper.make_node("Relu", ["images"], ["logits"]),
        helper.make_node("NonZero", ["logits"], ["places"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    graph = helper.make_graph(
        nodes[: len(outputs)], "test", [images], [values[name] for name in outputs]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture
def static(tmp_path) -> Path:
    return write_engine(tmp_path / "static.engine", relu("logits"), (PROFILE,))


def run(engine: TensorRTEngine, count: int, seed: int = 0) -> bool:
    """Runs and checks a batch; returns whether a graph computed it."""
    x = np.random.default_rng(seed).standard_normal((count, 3, 4, 4), np.float32)
    np.testing.assert_array_equal(engine.run({"images": x})["logits"], np.maximum(x, 0))
    return engine.last_times.graph


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_a_shape_runs_plainly_once_and_from_then_on_as_a_graph(device, static, mode):
    with TensorRTEngine(static, cuda_graph=mode) as engine:
        assert engine.description["cuda_graph"]["used"] is False
        counts = (4, 4, 2, 4, 2, 1, 1, 4)
        used = [run(engine, count, seed) for seed, count in enumerate(counts)]
        assert used == [False, True, False, True, True, False, True, True]
        assert device.calls.count("cudaStreamBeginCapture") == 3
        assert engine.description["cuda_graph"] == {"mode": mode, "used": True, "reason": None}


def test_a_graph_is_captured_again_when_a_buffer_moved(device, static):
    with TensorRTEngine(static, cuda_graph="on") as engine:
        assert [run(engine, 1, 0), run(engine, 1, 1)] == [False, True]
        assert run(engine, 8) is False  # the buffers grow
        assert [run(engine, 1, seed) for seed in range(3)] == [False, True, True]
        assert device.open["graphs"] == 2


@pytest.mark.parametrize("tokens", ["dense", "dynamic"])
def test_off_never_tries(device, tmp_path, caplog, tokens):
    path = write_engine(
        tmp_path / "m.engine", relu("logits"), (PROFILE,), sidecar={"tokens": tokens}
    )
    with (
        caplog.at_level(logging.INFO, "svit_deploy"),
        TensorRTEngine(path, cuda_graph="off") as engine,
    ):
        assert [run(engine, 2, seed) for seed in range(3)] == [False] * 3
        assert engine.description["cuda_graph"]["reason"] == "switched off"
    assert not caplog.messages
    assert "cudaStreamBeginCapture" not in device.calls


@pytest.mark.parametrize("function", ["cudaStreamBeginCapture", "cudaGraphInstantiate"])
def test_auto_goes_on_without_graphs_and_says_why_once(device, static, caplog, function):
    device.failures[function] = [Error.cudaErrorStreamCaptureUnsupported]
    with (
        caplog.at_level(logging.INFO, "svit_deploy"),
        TensorRTEngine(static, cuda_graph="auto") as engine,
    ):
        assert [run(engine, count) for count in (2, 2, 3, 3, 2)] == [False] * 5
        about = engine.description["cuda_graph"]
    assert about["reason"] == f"{function} failed: StreamCaptureUnsupported"
    assert about["used"] is False
    assert device.calls.count("cudaStreamBeginCapture") == 1
    assert caplog.messages == [f"no CUDA graph is used: {about['reason']}"]
    assert not any(device.open.values())


def test_auto_goes_on_when_the_library_cannot_be_captured(device, static, monkeypatch):
    with TensorRTEngine(static, cuda_graph="auto") as engine:
        assert run(engine, 2) is False
        binding = next(iter(engine._runs._slots[0]._bindings.values()))
        binding._drop_graph()
        binding._context.flushed = False  # as if something in it had changed
        engine._runs._slots[0].graphs.capture(binding)
        reason = engine.description["cuda_graph"]["reason"]
        assert "operation not permitted when stream is capturing" in reason
        assert [run(engine, 2, seed) for seed in range(2)] == [False, False]


def test_on_fails_with_the_reason(device, static):
    device.failures["cudaGraphInstantiate"] = [Error.cudaErrorMemoryAllocation]
    with TensorRTEngine(static, cuda_graph="on") as engine:
        with pytest.raises(CapabilityError) as caught:
            run(engine, 2)
        assert str(caught.value) == (
            "no CUDA graph can be captured: the GPU is out of memory; leave --cuda-graph on out."
        )
    assert not any(device.open.values())


@pytest.mark.parametrize(
    ("mode", "sidecar", "plan", "reason", "fix"),
    [
        ("auto", {"tokens": "dynamic"}, {}, "the host must wait for the number of tokens", ""),
        (
            "on",
            {"tokens": "dynamic"},
            {},
            "the host must wait for the number of tokens",
            "leave --cuda-graph on out, or export with --tokens budget",
        ),
        ("auto", {}, {"data_dependent": ["places"]}, "'places' depends on the data", ""),
        (
            "on",
            {},
            {"data_dependent": ["places"]},
            "the size of 'places' depends on the data",
            "leave --cuda-graph on out",
        ),
    ],
)
def test_what_cannot_be_captured_is_not_tried(device, tmp_path, mode, sidecar, plan, reason, fix):
    outputs = ("logits", "places") if plan else ("logits",)
    path = write_engine(tmp_path / "m.engine", relu(*outputs), (PROFILE,), sidecar=sidecar, **plan)
    if mode == "on":
        with pytest.raises(CapabilityError, match=reason) as caught:  # noqa: SIM117
            with TensorRTEngine(path, cuda_graph=mode) as engine:
                run(engine, 2)
        assert caught.value.fix == fix
    else:
        with TensorRTEngine(path, cuda_graph=mode) as engine:
            assert [run(engine, 2, seed) for seed in range(3)] == [False] * 3
            assert reason in engine.description["cuda_graph"]["reason"]
    assert "cudaStreamBeginCapture" not in device.calls
    assert not any(device.open.values())


@pytest.mark.parametrize("capturable", [True, False])
def test_a_library_that_can_tell_is_asked(device, tmp_path, monkeypatch, capturable):
    monkeypatch.setattr(
        "tests.engines.tensorrt.fake.runtime.RtxContext.is_stream_capturable",
        lambda self, stream: capturable,
    )
    path = write_engine(
        tmp_path / "m.engine",
        relu("logits"),
        (PROFILE,),
        library="tensorrt_rtx",
        version=RTX_VERSION,
        sidecar={"gpu": None},
    )
    with TensorRTEngine(path) as engine:
        assert [run(engine, 2, seed) for seed in range(3)] == [False, capturable, capturable]
        reason = engine.description["cuda_graph"]["reason"]
    assert reason == (
        None if capturable else "the library says that this engine cannot be captured"
    )
    assert ("cudaStreamBeginCapture" in device.calls) is capturable


def test_a_launch_that_fails(device, static):
    with TensorRTEngine(static) as engine:
        run(engine, 2)
        device.failures["cudaGraphLaunch"] = [Error.cudaErrorLaunchFailure]
        with pytest.raises(CapabilityError, match="cudaGraphLaunch failed: LaunchFailure"):
            run(engine, 2)


def test_an_unknown_mode(device, static):
    with pytest.raises(UsageError, match="'yes' is unknown; use auto, on, off"):
        TensorRTEngine(static, cuda_graph="yes")
    assert not any(device.open.values())
