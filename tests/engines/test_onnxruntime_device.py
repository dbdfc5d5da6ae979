"""ONNX Runtime's NVIDIA providers on memory and a stream of ours: results, graphs, times."""

from __future__ import annotations

import inspect
import logging

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from svit_deploy.engines.arrays import OnDevice
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.engines.providers import PROVIDERS, TF32_VARIABLE
from svit_deploy.errors import CapabilityError, UsageError
from tests.engines import fake_onnxruntime as fake
from tests.engines.fake_onnxruntime import Told, install_providers
from tests.engines.graphs import dynamic, linear, model_bytes, scaled
from tests.engines.tensorrt.fake.cuda import Device, Error

NOTHING = {"memory": 0, "pinned": 0, "streams": 0, "events": 0, "graphs": 0}


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture(autouse=True)
def told(monkeypatch, device) -> Told:
    monkeypatch.setenv(TF32_VARIABLE, "0")
    return install_providers(monkeypatch, device)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 2, 2), np.float32)


def cuda(model: bytes, **options) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(model, provider="cuda", **options)


def run(engine: OnnxRuntimeEngine, count: int, seed: int = 0) -> bool:
    """Runs and checks a batch; returns whether a graph computed it."""
    x = images(count, seed)
    found = engine.run({"x": x})
    np.testing.assert_allclose(found["sum"], x.reshape(count, -1).sum(1, keepdims=True), atol=1e-5)
    np.testing.assert_array_equal(found["positive"], x > 0)
    return engine.last_times.graph


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_a_shape_runs_twice_and_from_then_on_as_a_graph(device, told, mode):
    """The first run tells the shapes of its outputs, the second runs where they will stay."""
    with cuda(linear(), cuda_graph=mode) as engine:
        counts = (4, 4, 4, 2, 2, 4, 2, 2)
        used = [run(engine, count, seed) for seed, count in enumerate(counts)]
        assert used == [False, False, True, False, False, True, True, True]
        assert engine.description["cuda_graph"] == {"mode": mode, "used": True, "reason": None}
    assert told.recorded == [1, 2]
    (((_, options),)) = [told.providers[0]]
    assert options["enable_cuda_graph"] == "1" and options["use_tf32"] == "0"
    assert device.open == NOTHING


@pytest.mark.parametrize("provider", ["tensorrt", "nv-tensorrt-rtx"])
def test_those_that_build_engines_run_in_memory_of_ours_without_graphs(device, told, provider):
    """Shapes in turn, then three runs in flight, a session and a stream for each."""
    device.count = 2
    with OnnxRuntimeEngine(linear(), provider=provider, device=1) as engine:
        assert [run(engine, count, seed) for seed, count in enumerate((4, 4, 2, 4))] == [False] * 4
        engine.run({"x": images(2)}, ["sum"])
        times = engine.last_times
        assert (times.gpu_ms, times.h2d_ms, times.d2h_ms) == (2, *[device.copy_ms] * 2)
        flight = engine.fly([{"x": images(2, seed)} for seed in range(3)], ["sum"], 9, 3)
        assert (flight.in_flight, flight.device_ms) == (3, 2 + 2 * device.copy_ms)
        kept = engine.run_kept({"x": images(2)}, ["positive"], ["positive"])["positive"]
        assert isinstance(kept, OnDevice)
        graphs = engine.description["cuda_graph"]
        assert graphs["reason"] == f"none of {PROVIDERS[provider]} are recorded here"
    names = [name for name, _ in told.providers]
    assert names == [PROVIDERS[provider], PROVIDERS["cuda"]] * 3
    assert len({options["user_compute_stream"] for _, options in told.providers}) == 3
    assert not told.recorded and device.open == NOTHING
    with pytest.raises(CapabilityError, match=r"no CUDA graph can be captured: none of .* here"):
        OnnxRuntimeEngine(linear(), provider=provider, cuda_graph="on")


def test_a_graph_is_recorded_anew_when_a_buffer_moved(told):
    with cuda(linear(), cuda_graph="on") as engine:
        assert [run(engine, 1, seed) for seed in range(3)] == [False, False, True]
        assert run(engine, 8) is False  # the buffers grow
        assert [run(engine, 1, seed) for seed in range(3)] == [False, True, True]
        assert told.released == [1]
    assert told.recorded == told.released == [1, 2]


def test_off_never_asks_for_graphs(told):
    with cuda(linear(), cuda_graph="off") as engine:
        assert [run(engine, 2, seed) for seed in range(4)] == [False] * 4
        assert engine.description["cuda_graph"]["reason"] == "switched off"
    assert "enable_cuda_graph" not in told.providers[0][1] and not told.recorded


def test_times_of_the_last_run_by_the_device_clock(device):
    with cuda(linear()) as engine:
        assert engine.last_times is None
        for _ in range(3):
            engine.run({"x": images(2)}, ["sum"])
            times = engine.last_times
            assert (times.gpu_ms, times.h2d_ms, times.d2h_ms) == (2, *[device.copy_ms] * 2)
            assert times.enqueue_ms > 0 and times.profile is None
    assert "cudaSetDeviceFlags" in device.calls  # the host waits without sleeping


def test_only_the_outputs_asked_for_are_copied(device):
    with cuda(linear(), cuda_graph="off") as engine:
        engine.run({"x": images(2)})
        device.calls.clear()
        assert list(engine.run({"x": images(2)}, ["positive"])) == ["positive"]
    assert device.calls.count("cudaMemcpyAsync") == 2


@pytest.mark.parametrize(
    ("mode", "reason"),
    [("", "sizes that depend on the data"), ("dynamic", "wait for the number of tokens kept")],
)
def test_sizes_that_depend_on_the_data(device, told, mode, reason):
    model = onnx.ModelProto.FromString(dynamic())
    helper.set_model_props(model, {"svit_deploy.mode": mode})
    content = model.SerializeToString()
    with cuda(content) as engine:
        for x in ([1, 0, 2], [1, 3, 2], [0, 0, 0], [0, 1, 0]):
            found = engine.run({"x": np.array(x, np.float32)})["rows"]
            np.testing.assert_array_equal(found, np.stack(np.nonzero(x)))
        assert reason in engine.description["cuda_graph"]["reason"]
    assert "enable_cuda_graph" not in told.providers[0][1]
    with pytest.raises(CapabilityError, match=f"no CUDA graph can be captured: .*{reason}"):
        cuda(content, cuda_graph="on")
    assert device.open == NOTHING


def test_an_output_of_fixed_size_beside_one_that_is_not(device):
    """Only the second is put anew by each run."""
    shape = ["N", 2]
    model = model_bytes(
        [
            helper.make_node("Relu", ["x"], ["y"]),
            helper.make_node("NonZero", ["y"], ["places"]),
        ],
        [("x", TensorProto.FLOAT, shape)],
        [("y", TensorProto.FLOAT, shape), ("places", TensorProto.INT64, [2, "found"])],
    )
    with cuda(model) as engine:
        for seed in range(4):
            x = np.random.default_rng(seed).standard_normal((3, 2), np.float32)
            found = engine.run({"x": x})
            np.testing.assert_array_equal(found["y"], np.maximum(x, 0))
            np.testing.assert_array_equal(found["places"], np.stack(np.nonzero(x > 0)))
    assert device.open == NOTHING


def test_nodes_that_cuda_does_not_take_cannot_be_recorded(told, caplog):
    told.refuses_graphs = True
    caplog.set_level(logging.INFO)
    with cuda(linear()) as engine:
        assert [run(engine, 2, seed) for seed in range(4)] == [False] * 4
        reason = engine.description["cuda_graph"]["reason"]
    assert "cannot use the graph capture feature" in reason
    assert caplog.messages == [f"no CUDA graph is used: {reason}"]
    with pytest.raises(
        CapabilityError, match=r"no CUDA graph can be captured: .*not been assigned"
    ):
        cuda(linear(), cuda_graph="on")
    assert told.device.open == NOTHING


def test_a_recording_that_fails(told):
    told.capture_error = "CUDA failure 900: operation not permitted when stream is capturing"
    with cuda(linear()) as engine:
        assert [run(engine, 2, seed) for seed in range(4)] == [False] * 4
        assert "operation not permitted" in engine.description["cuda_graph"]["reason"]
    told.capture_error = "CUDA failure 900: operation not permitted when stream is capturing"
    with (
        cuda(linear(), cuda_graph="on") as engine,
        pytest.raises(CapabilityError, match=r"no CUDA graph can be captured: .*not permitted"),
    ):
        for _ in range(2):
            run(engine, 2)
    assert told.device.open == NOTHING


@pytest.mark.parametrize("old", [False, True])
def test_an_input_that_a_node_on_the_cpu_reads(told, monkeypatch, old):
    """Bound on the device it would be copied before the stream has filled it."""
    told.on_cpu = ("scale",)
    if old:  # an ONNX Runtime that does not tell which
        monkeypatch.delattr(fake.Session, "get_input_memory_infos")
    with cuda(scaled()) as engine:
        for seed in range(3):
            x, scale = images(2, seed), np.float32(seed + 2)
            found = engine.run({"x": x, "scale": np.array(scale)})["y"]
            np.testing.assert_array_equal(found, x * scale)
        reason = engine.description["cuda_graph"]["reason"]
    assert reason == f"scale{', x' * old} is read in host memory"


def test_several_runs_in_flight(device, told):
    """Each has a session, a stream and memory of its own."""
    with cuda(linear()) as engine:
        feeds = [{"x": images(2, seed)} for seed in range(3)]
        flight = engine.fly(feeds, ["sum"], 9, 3)
        assert (flight.in_flight, flight.runs) == (3, 9)
        # The fake device does one thing after another.
        assert flight.device_ms == 2 + 2 * device.copy_ms
        assert len({options["user_compute_stream"] for _, options in told.providers}) == 3
        assert run(engine, 2)
    assert device.open == NOTHING


def test_arrays_pass_from_engine_to_engine_on_the_device(device, told):
    """What one leaves on the device, the other reads there: only one input and one output move."""
    told.on_cpu = ()
    with cuda(scaled()) as first, cuda(linear()) as second:
        for seed in range(4):
            x, scale = images(2, seed), np.array(seed + 1, np.float32)
            device.calls.clear()
            kept = first.run_kept({"x": x, "scale": scale}, ["y"], ["y"])["y"]
            assert isinstance(kept, OnDevice) and (kept.shape, kept.nbytes) == (x.shape, x.nbytes)
            found = second.run_kept({"x": kept}, ["sum"])["sum"]
            assert device.calls.count("cudaMemcpyAsync") == 3  # x, scale; sum
            expected = (x * scale).reshape(2, -1).sum(1, keepdims=True)
            np.testing.assert_allclose(found, expected, atol=1e-5)
            half = second.run_kept({"x": kept.rows(1)}, ["sum"])["sum"]
            np.testing.assert_allclose(half, expected[:1], atol=1e-5)
        assert second.last_times.h2d_ms == 0
        told.on_cpu = ("x",)
        with cuda(linear()) as third:
            found = third.run_kept({"x": kept}, ["sum"])["sum"]
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert device.open == NOTHING


def test_the_device_asked_for(device, told):
    device.count = 2
    with cuda(linear(), device=1) as engine:
        run(engine, 1)
        assert (engine.nvidia_gpu, device.current) == (1, 1)
    assert told.providers[0][1]["device_id"] == "1"
    with pytest.raises(UsageError, match="there is no GPU 2, only 2"):
        cuda(linear(), device=2)


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("device_id", "1", "give --device 1"),
        ("user_compute_stream", "7", "a stream of their own"),
        ("enable_cuda_graph", "1", "bench --cuda-graph"),
    ],
)
def test_options_that_contradict_ours(device, name, value, fix):
    with pytest.raises(UsageError, match=f"--provider-option {name}") as caught:
        cuda(linear(), provider_options={name: value})
    assert fix in caught.value.fix
    assert device.open == NOTHING
    with cuda(linear(), provider_options={"device_id": "0"}) as engine:
        run(engine, 1)


def test_no_driver_and_no_memory(device):
    device.capacity = 100
    with cuda(linear()) as engine, pytest.raises(CapabilityError, match="GPU is out of memory"):
        run(engine, 64)
    device.driver = 0
    with pytest.raises(CapabilityError, match=r"no NVIDIA driver .*or use .*--provider cpu"):
        cuda(linear())
    assert device.open == NOTHING
    device.driver = 13000
    device.failures["cudaStreamSynchronize"] = [Error.cudaErrorIllegalAddress]
    device.capacity = 1 << 20
    with cuda(linear()) as engine, pytest.raises(CapabilityError, match="IllegalAddress"):
        run(engine, 1)


@pytest.mark.parametrize(
    ("ours", "real"),
    [
        (fake.Binding.bind_input, onnxruntime.IOBinding.bind_input),
        (fake.Binding.bind_output, onnxruntime.IOBinding.bind_output),
        (fake.Binding.bind_cpu_input, onnxruntime.IOBinding.bind_cpu_input),
        (fake.Binding.get_outputs, onnxruntime.IOBinding.get_outputs),
        (fake.Session.run_with_iobinding, fake.RealSession.run_with_iobinding),
        (fake.Session.release_captured_graph, fake.RealSession.release_captured_graph),
        (fake.Session.io_binding, fake.RealSession.io_binding),
        (fake.Session.get_input_memory_infos, fake.RealSession.get_input_memory_infos),
        (fake.Value.data_ptr, onnxruntime.OrtValue.data_ptr),
        (fake.Value.shape, onnxruntime.OrtValue.shape),
    ],
)
def test_the_fake_is_called_as_the_real_one(ours, real):
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(real).parameters)


def test_what_the_real_one_does_with_outputs_it_places():
    """Unless they are bound again it reuses the last run's array, which another size breaks."""
    session = fake.RealSession(dynamic(), providers=[fake.CPU])
    bound, x = session.io_binding(), np.array([1, 0, 2], np.float32)
    for expected in ([[0, 2]], [[1]]):
        bound.bind_input("x", "cpu", 0, np.dtype("float32"), x.shape, x.ctypes.data)
        bound.bind_output("rows", "cpu", 0)
        session.run_with_iobinding(bound)
        (value,) = bound.get_outputs()
        assert (value.shape(), value.numpy().tolist()) == ([1, len(expected[0])], expected)
        x[:] = [0, 4, 0]
    x[:] = 1
    with pytest.raises(RuntimeError, match="computed output shape"):
        session.run_with_iobinding(bound)
    assert session.get_input_memory_infos()[0].name == "Cpu"
