"""A stand-in for ONNX Runtime's NVIDIA providers: the CPU's computes, on a fake device's stream.

What it is told has the form that the installed ONNX Runtime takes; `test_onnxruntime_device.py`
holds the two against each other.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from svit_deploy.engines.providers import CUDA, NVIDIA, PROVIDERS, RTX_PROVIDER
from tests.engines.tensorrt.fake.cuda import Device, Work, make_cuda

RealSession = onnxruntime.InferenceSession
CPU = PROVIDERS["cpu"]


@dataclass
class Place:
    """Where a tensor is bound; without an address, wherever the session puts it."""

    address: int | None = None
    dtype: np.dtype | None = None
    shape: tuple[int, ...] = ()
    array: np.ndarray | None = None


@dataclass
class Told:
    """What sessions were asked, and switches.

    Attributes:
        providers: what each session was opened with, name and options.
        recorded, released: numbers of the graphs, in the order in which they were.
        on_cpu: inputs that a node on the CPU reads.
        refuses_graphs: whether some node is not the CUDA provider's.
        capture_error: what the next recording fails with.
    """

    device: Device
    providers: list[Any] = field(default_factory=list)
    recorded: list[int] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    on_cpu: tuple[str, ...] = ()
    refuses_graphs: bool = False
    capture_error: str | None = None


class Value:
    """An array that the session put on the device."""

    def __init__(self, device: Device, array: np.ndarray) -> None:
        self._device, self._array = device, np.ascontiguousarray(array)
        block = ctypes.create_string_buffer(self._array.tobytes(), max(1, array.nbytes))
        self._address = ctypes.addressof(block)
        device.memory[self._address] = block

    def data_ptr(self) -> int:
        return self._address if self._array.size else 0

    def shape(self) -> list[int]:
        return list(self._array.shape)

    def __del__(self) -> None:
        self._device.memory.pop(self._address, None)


class Binding:
    def __init__(self, session: Session) -> None:
        self._session, self._told = session, session.told
        self.inputs: dict[str, Place] = {}
        self.outputs: dict[str, Place] = {}
        self.values: dict[str, Value] = {}

    def bind_input(self, name, device_type, device_id, element_type, shape, buffer_ptr):
        assert (device_type, device_id) == ("cuda", self._session.number)
        place = Place(buffer_ptr, np.dtype(element_type), tuple(shape))
        if name in self._told.on_cpu:  # the real one copies now, whatever the stream has to do yet
            place = Place(array=self._session.read(place))
        self.inputs[name] = place

    def bind_cpu_input(self, name, arr_on_cpu):
        self.inputs[name] = Place(array=arr_on_cpu)

    def bind_output(
        self,
        name,
        device_type="cpu",
        device_id=0,
        element_type=None,
        shape=None,
        buffer_ptr=None,
    ):
        assert (device_type, device_id) == ("cuda", self._session.number)
        self.values.pop(name, None)
        if buffer_ptr is None:
            self.outputs[name] = Place()
        else:
            self.outputs[name] = Place(buffer_ptr, np.dtype(element_type), tuple(shape))

    def get_outputs(self):
        return [self.values.get(name) for name in self.outputs]


class Session:
    """Instead of `InferenceSession`."""

    told: Told

    def __init__(self, model, options=None, providers=None, enable_fallback=0):
        wanted = providers or options.added
        (self.provider, chosen), *behind = wanted
        assert [name for name, _ in behind] == ([] if self.provider == CUDA else [CUDA])
        self.told.providers += wanted
        self.number = getattr(options, "number", None)
        for name, told in wanted:  # all work goes to one stream of one device
            assert (told["has_user_compute_stream"], told["user_compute_stream"]) == (
                "1", chosen["user_compute_stream"],
            )  # fmt: skip
            if name != RTX_PROVIDER:  # its device is that which it was added for
                assert self.number in (None, int(told["device_id"]))
                self.number = int(told["device_id"])
        self.stream = int(chosen["user_compute_stream"])
        assert self.stream in self.told.device.streams
        self._graphs = chosen.get("enable_cuda_graph") == "1"
        assert not self._graphs or self.provider == CUDA
        if self._graphs and self.told.refuses_graphs:
            raise RuntimeError(
                "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature "
                f"as requested by the user as all the graph nodes have not been assigned to {CUDA}"
            )
        own = onnxruntime.SessionOptions()
        own.intra_op_num_threads = 1
        self._real = RealSession(model, own, providers=[CPU])
        self._recorded: dict[int, tuple[dict[str, Place], dict[str, Place]]] = {}
        for copied in ("get_inputs", "get_outputs"):
            setattr(self, copied, getattr(self._real, copied))

    def get_providers(self):
        return list(dict.fromkeys([self.provider, CUDA, CPU]))

    def disable_fallback(self):
        pass

    def get_input_memory_infos(self):
        on_cpu = self.told.on_cpu
        return [
            SimpleNamespace(name="Cpu" if node.name in on_cpu else "Cuda")
            for node in self._real.get_inputs()
        ]

    def io_binding(self):
        return Binding(self)

    def release_captured_graph(self, graph_annotation_id=0):
        del self._recorded[graph_annotation_id]
        self.told.released.append(graph_annotation_id)

    def read(self, place: Place) -> np.ndarray:
        if place.array is not None:
            return place.array
        size = int(np.prod(place.shape)) * place.dtype.itemsize
        raw = self.told.device.view(place.address, size).raw if size else b""
        return np.frombuffer(raw, place.dtype).reshape(place.shape)

    def run_with_iobinding(self, iobinding, run_options=None):
        device, number = self.told.device, int(run_options.get_run_config_entry("gpu_graph_id"))
        waits = run_options.get_run_config_entry("disable_synchronize_execution_providers") != "1"
        assert not device.capturing(self.stream)
        if self._graphs and number in self._recorded:
            self._enqueue(*self._recorded[number])
        else:
            self._plain(iobinding)
            if self._graphs and number >= 0:
                self._record(iobinding, number)
        if waits:
            device.drain(self.stream)

    def _plain(self, bound: Binding) -> None:
        inputs, outputs = dict(bound.inputs), dict(bound.outputs)
        if any(place.address is None for place in outputs.values()):
            self.told.device.drain(self.stream)  # sizes are known when it returns
            for name, array in self._compute(inputs).items():
                if outputs[name].address is None:
                    bound.values[name] = Value(self.told.device, array)
                else:
                    self._write(outputs[name], array)
            self.told.device.enqueue(self.stream, Work(lambda: None, 2.0))
        else:
            self._enqueue(inputs, outputs)

    def _record(self, bound: Binding, number: int) -> None:
        if self.told.capture_error is not None:
            error, self.told.capture_error = self.told.capture_error, None
            self.told.device.streams[self.stream].captured = []  # nobody ends it
            raise RuntimeError(error)
        assert all(place.address is not None for place in bound.outputs.values())
        self._recorded[number] = dict(bound.inputs), dict(bound.outputs)
        self.told.recorded.append(number)
        self._enqueue(*self._recorded[number])

    def _enqueue(self, inputs: dict[str, Place], outputs: dict[str, Place]) -> None:
        def compute() -> None:
            for name, array in self._compute(inputs).items():
                self._write(outputs[name], array)

        self.told.device.enqueue(self.stream, Work(compute, 2.0))

    def _compute(self, inputs: dict[str, Place]) -> dict[str, np.ndarray]:
        names = [node.name for node in self._real.get_outputs()]
        arrays = self._real.run(names, {name: self.read(place) for name, place in inputs.items()})
        return dict(zip(names, arrays, strict=True))

    def _write(self, place: Place, array: np.ndarray) -> None:
        assert (array.shape, array.dtype) == (place.shape, place.dtype)
        self.told.device.view(place.address, array.nbytes)[:] = array.tobytes()


class Options(onnxruntime.SessionOptions):
    """Instead of `SessionOptions`, which takes real devices only."""

    def __init__(self) -> None:
        super().__init__()
        self.added: list[Any] = []

    def add_provider_for_devices(self, ep_devices, provider_options):
        (device,) = ep_devices
        self.number = int(device.ep_options["device_id"])
        self.added.append((device.ep_name, provider_options))

    def add_provider(self, provider_name, provider_options):
        self.added.append((provider_name, provider_options))


def install_providers(
    monkeypatch: pytest.MonkeyPatch, device: Device, here: tuple[str, ...] = NVIDIA
) -> Told:
    """Puts the fake CUDA runtime, and ONNX Runtime's NVIDIA providers over it, in place.

    Args:
        here: full names of those that there are.
    """
    told = Told(device)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", make_cuda(device))
    within = [name for name in here if name != RTX_PROVIDER]  # which is a package of its own
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*within, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)

    def open_session(model, options=None, providers=None, **rest):
        on_device = type("OnDevice", (Session,), {"told": told})
        cpu = providers == [CPU]
        return (RealSession if cpu else on_device)(model, options, providers=providers, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: [
        SimpleNamespace(ep_name=name, ep_options={"device_id": str(number)})
        for number in range(device.count) for name in here if name == RTX_PROVIDER
    ])  # fmt: skip
    return told
