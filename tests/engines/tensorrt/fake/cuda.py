"""A stand-in for `cuda.bindings.runtime`: host memory for the device's, work done when waited for.

What is put on a stream is only run by a synchronisation or a blocking free, as on a real device at
its slowest: code that reads too early reads old bytes. Work on memory that is not allocated, or no
longer, fails with an illegal address.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

Error = IntEnum(
    "cudaError_t",
    {
        "cudaSuccess": 0,
        "cudaErrorInvalidValue": 1,
        "cudaErrorMemoryAllocation": 2,
        "cudaErrorInsufficientDriver": 35,
        "cudaErrorNoDevice": 100,
        "cudaErrorInvalidDevice": 101,
        "cudaErrorIllegalAddress": 700,
        "cudaErrorLaunchFailure": 719,
        "cudaErrorStreamCaptureUnsupported": 900,
        "cudaErrorStreamCaptureInvalidated": 901,
    },
)
OK = Error.cudaSuccess
CaptureMode = IntEnum(
    "cudaStreamCaptureMode",
    {"cudaStreamCaptureModeGlobal": 0, "cudaStreamCaptureModeThreadLocal": 1},
)
MemcpyKind = IntEnum("cudaMemcpyKind", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2})


@dataclass
class Work:
    """One thing on a stream: what it does, and how long the device is busy with it."""

    run: Callable[[], None]
    ms: float = 0.0


@dataclass
class StreamState:
    queue: list[Work] = field(default_factory=list)
    captured: list[Work] | None = None
    invalidated: bool = False


class IllegalAddress(Exception):
    """Work touched memory that is not allocated."""


class Device:
    """One fake GPU, and the counters and switches that tests look at and set.

    Attributes:
        failures: by function, the errors its next calls give (one each).
        calls: names of the functions called.
        capacity: bytes of device memory.
        copy_ms: what a copy costs on the device's clock.
    """

    def __init__(self) -> None:
        self.count, self.driver, self.runtime = 1, 13000, 13000
        self.name, self.capability = "NVIDIA Fake 9000", (9, 0)
        self.capacity = 1 << 30
        self.copy_ms = 0.25
        self.now_ms = 0.0
        self.current: int | None = None
        self.failures: dict[str, list[Error]] = {}
        self.calls: list[str] = []
        self.memory: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, StreamState] = {}
        self.events: dict[int, float | None] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        self.sticky: Error = OK
        self._handles = iter(range(0x1000, 1 << 30))

    @property
    def open(self) -> dict[str, int]:
        """How many of each thing were made and not freed; all 0 after a clean end."""
        return {
            "memory": len(self.memory),
            "pinned": len(self.pinned),
            "streams": len(self.streams),
            "events": len(self.events),
            "graphs": len(self.graphs) + len(self.executables),
        }

    def used(self) -> int:
        return sum(len(block) for block in self.memory.values())

    def view(self, address: int, size: int) -> Any:
        """The bytes at an address, which must lie within one live allocation."""
        for start, block in (*self.memory.items(), *self.pinned.items()):
            if start <= address and address + size <= start + len(block):
                return (ctypes.c_char * size).from_address(address)
        raise IllegalAddress(f"{address:#x}")

    def enqueue(self, stream: int, work: Work) -> None:
        state = self.streams[stream]
        (state.queue if state.captured is None else state.captured).append(work)

    def drain(self, stream: int) -> Error:
        """Runs what is on a stream."""
        queue, self.streams[stream].queue = self.streams[stream].queue, []
        for work in queue:
            if self.sticky is OK:
                try:
                    work.run()
                except IllegalAddress:
                    self.sticky = Error.cudaErrorIllegalAddress
                self.now_ms += work.ms
        return self.sticky

    def capturing(self, stream: int) -> bool:
        return self.streams[stream].captured is not None

    def invalidate(self, stream: int) -> None:
        """What a call that waits does to a capture."""
        self.streams[stream].invalidated = True

    def handle(self) -> int:
        return next(self._handles)


def make_cuda(device: Device) -> ModuleType:
    """The module `cuda.bindings.runtime` over a fake device."""
    module = ModuleType("cuda.bindings.runtime")
    members: dict[str, Any] = {
        "cudaError_t": Error,
        "cudaStreamCaptureMode": CaptureMode,
        "cudaMemcpyKind": MemcpyKind,
        "cudaHostAllocDefault": 0,
        "cudaDeviceScheduleSpin": 1,
        "cudaStreamNonBlocking": 1,
    }
    for name, function in vars(_Functions(device)).items():
        members[name] = _counted(device, name, function)
    vars(module).update(members)
    return module


def _counted(device: Device, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> tuple[Any, ...]:
        device.calls.append(name)
        if device.failures.get(name):
            return device.failures[name].pop(0), None
        if device.driver < device.runtime // 1000 * 1000 and name not in (
            "cudaDriverGetVersion", "cudaRuntimeGetVersion", "cudaGetErrorString",
        ):  # fmt: skip
            return Error.cudaErrorInsufficientDriver, None
        answer = function(*args)
        if isinstance(answer, Error):
            return (answer,) if answer is OK else (answer, None)
        return (OK, *answer)

    return call


class _Functions:
    """Each attribute is a function of the runtime that returns its values, or an error."""

    def __init__(self, device: Device) -> None:
        self.cudaGetErrorString = lambda error: (error.name.removeprefix("cudaError").encode(),)
        self.cudaDriverGetVersion = lambda: (device.driver,)
        self.cudaRuntimeGetVersion = lambda: (device.runtime,)
        self.cudaGetLastError = lambda: OK
        self.cudaGetDeviceCount = lambda: (
            (device.count,) if device.count else Error.cudaErrorNoDevice
        )
        self.cudaDeviceGetPCIBusId = lambda length, index: (b"0000:01:00.0\0",)

        def set_device(index: int) -> Any:
            if not 0 <= index < device.count:
                return Error.cudaErrorInvalidDevice
            device.current = index
            return OK

        def properties(index: int) -> Any:
            major, minor = device.capability
            return (SimpleNamespace(name=device.name.encode(), major=major, minor=minor),)

        self.cudaSetDevice, self.cudaGetDeviceProperties = set_device, properties
        self.cudaSetDeviceFlags = lambda flags: (
            OK if flags == 1 and device.current is not None else Error.cudaErrorInvalidValue
        )

        def malloc(size: int) -> Any:
            if any(state.captured is not None for state in device.streams.values()):
                return Error.cudaErrorStreamCaptureUnsupported
            if device.used() + size > device.capacity:
                return Error.cudaErrorMemoryAllocation
            block = ctypes.create_string_buffer(b"\xaa" * size, size)
            device.memory[ctypes.addressof(block)] = block
            return (ctypes.addressof(block),)

        def free(address: int) -> Any:
            for stream in device.streams:
                device.drain(stream)
            device.memory.pop(address)
            return OK

        def host_alloc(size: int, flags: int) -> Any:
            block = ctypes.create_string_buffer(size)
            device.pinned[ctypes.addressof(block)] = block
            return (ctypes.addressof(block),)

        def free_host(address: int) -> Any:
            device.pinned.pop(address)
            return OK

        self.cudaMalloc, self.cudaFree = malloc, free
        self.cudaHostAlloc, self.cudaFreeHost = host_alloc, free_host

        def stream_create(flags: int) -> Any:
            handle = device.handle()
            device.streams[handle] = StreamState()
            return (handle,)

        def stream_destroy(stream: int) -> Any:
            device.streams.pop(stream)
            return OK

        def synchronize(stream: int) -> Any:
            if device.capturing(stream):
                device.invalidate(stream)
                return Error.cudaErrorStreamCaptureUnsupported
            return device.drain(stream)

        self.cudaStreamCreateWithFlags, self.cudaStreamDestroy = stream_create, stream_destroy
        self.cudaStreamSynchronize = synchronize

        def copy(dst: int, src: int, size: int, kind: int, stream: int) -> Any:
            def run() -> None:
                ctypes.memmove(device.view(dst, size), device.view(src, size), size)

            device.enqueue(stream, Work(run, device.copy_ms))
            return OK

        self.cudaMemcpyAsync = copy

        def event_create() -> Any:
            handle = device.handle()
            device.events[handle] = None
            return (handle,)

        def event_destroy(event: int) -> Any:
            device.events.pop(event)
            return OK

        def record(event: int, stream: int) -> Any:
            device.enqueue(stream, Work(lambda: device.events.update({event: device.now_ms})))
            return OK

        def elapsed(start: int, end: int) -> Any:
            first, last = device.events[start], device.events[end]
            return Error.cudaErrorInvalidValue if first is None or last is None else (last - first,)

        self.cudaEventCreate, self.cudaEventDestroy = event_create, event_destroy
        self.cudaEventRecord, self.cudaEventElapsedTime = record, elapsed

        def begin(stream: int, mode: int) -> Any:
            assert not device.streams[stream].queue, "a capture began with work in flight"
            device.streams[stream].captured = []
            return OK

        def end(stream: int) -> Any:
            state = device.streams[stream]
            captured, state.captured = state.captured, None
            if state.invalidated:
                state.invalidated = False
                return Error.cudaErrorStreamCaptureInvalidated
            handle = device.handle()
            device.graphs[handle] = captured or []
            return (handle,)

        def instantiate(graph: int, flags: int) -> Any:
            handle = device.handle()
            device.executables[handle] = list(device.graphs[graph])
            return (handle,)

        def graph_destroy(graph: int) -> Any:
            device.graphs.pop(graph)
            return OK

        def exec_destroy(executable: int) -> Any:
            device.executables.pop(executable)
            return OK

        def launch(executable: int, stream: int) -> Any:
            for work in device.executables[executable]:
                device.enqueue(stream, work)
            return OK

        self.cudaStreamBeginCapture, self.cudaStreamEndCapture = begin, end
        self.cudaGraphInstantiate, self.cudaGraphDestroy = instantiate, graph_destroy
        self.cudaGraphExecDestroy, self.cudaGraphLaunch = exec_destroy, launch
