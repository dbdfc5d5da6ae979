"""The CUDA runtime calls that running an engine needs, checked, as objects that free themselves."""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from svit_deploy.errors import CapabilityError, SvitDeployError, UsageError

NO_GPU = "run on a machine with an NVIDIA GPU, or use its ONNX model with --provider cpu"


@dataclass(frozen=True)
class Gpu:
    """A device: its name and compute capability, as in `9.0`."""

    name: str
    compute_capability: str

    @property
    def sm(self) -> str:
        return "sm" + self.compute_capability.replace(".", "")


class Cuda:
    """One GPU through the CUDA runtime.

    Attributes:
        device: its number, among those that CUDA_VISIBLE_DEVICES shows.
        gpu: its name and compute capability.

    Raises:
        CapabilityError: no package, no driver, one that is too old, or no GPU.
        UsageError: no GPU of that number.
    """

    def __init__(self, device: int = 0) -> None:
        self.runtime = _import_runtime()
        self.device = device
        count = self.call("cudaGetDeviceCount")
        if not count:
            raise _no_device()
        if not 0 <= device < count:
            raise UsageError(
                f"there is no GPU {device}, only {count} can be seen here",
                f"give --device a number below {count}",
            )
        self.use()
        # Woken by an interrupt, the host would be late by as much as a small model takes.
        self.quietly("cudaSetDeviceFlags", self.runtime.cudaDeviceScheduleSpin)
        about = self.call("cudaGetDeviceProperties", device)
        name = about.name.rstrip(b"\0").decode()
        self.gpu = Gpu(name, f"{about.major}.{about.minor}")

    def use(self) -> None:
        """Makes it the device of the calling thread."""
        self.call("cudaSetDevice", self.device)

    @property
    def pci_bus_id(self) -> str:
        """What NVML knows the device by: the numbers of the two need not agree."""
        return str(self.call("cudaDeviceGetPCIBusId", 32, self.device).rstrip(b"\0").decode())

    def call(self, function: str, *arguments: Any) -> Any:
        """Calls a function of the runtime and gives its value.

        Raises:
            CapabilityError: it failed.
        """
        error, *values = getattr(self.runtime, function)(*arguments)
        if int(error):
            raise self._failure(function, error)
        return values[0] if values else None

    def quietly(self, function: str, *arguments: Any) -> None:
        """Calls a function whose failure changes nothing, or comes of an earlier one."""
        getattr(self.runtime, function)(*arguments)

    def _failure(self, function: str, error: Any) -> SvitDeployError:
        kind = error.name.removeprefix("cudaError")
        if kind == "MemoryAllocation":
            return CapabilityError(
                "the GPU is out of memory",
                "lower the batch size, or free the GPU (nvidia-smi tells who uses it)",
            )
        if kind == "InsufficientDriver":
            return self._driver_failure()
        if kind == "NoDevice":
            return _no_device()
        _, text = self.runtime.cudaGetErrorString(error)
        return CapabilityError(
            f"{function} failed: {text.decode()}",
            "run again; if it fails again, build the engine again",
        )

    def _driver_failure(self) -> CapabilityError:
        _, driver = self.runtime.cudaDriverGetVersion()
        _, needed = self.runtime.cudaRuntimeGetVersion()
        if not driver:
            return CapabilityError("there is no NVIDIA driver on this machine", NO_GPU)
        return CapabilityError(
            f"the NVIDIA driver is too old: it supports CUDA {_version(driver)}, and the installed "
            f"cuda-bindings need {needed // 1000}.0",
            f"upgrade the driver, or run: pip install 'cuda-bindings=={driver // 1000}.*'",
        )


class Buffer:
    """Device memory that grows when asked for more; its address changes then."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.address, self.size = 0, 0

    def reserve(self, size: int) -> None:
        """Makes it hold `size` bytes, at least one; what it held is lost if it has to grow.

        Raises:
            CapabilityError: out of memory; the buffer is empty then.
        """
        if self.address and size <= self.size:
            return
        self.close()  # first, so that old and new need not fit together
        self.address = self._allocate(max(1, size))
        self.size = max(1, size)

    def _allocate(self, size: int) -> int:
        return int(self._cuda.call("cudaMalloc", size))

    def _free(self) -> None:
        self._cuda.quietly("cudaFree", self.address)

    def close(self) -> None:
        if self.address:
            self._free()
        self.address, self.size = 0, 0


class PinnedBuffer(Buffer):
    """Page-locked host memory: the device copies from and to it without a detour."""

    def _allocate(self, size: int) -> int:
        return int(self._cuda.call("cudaHostAlloc", size, self._cuda.runtime.cudaHostAllocDefault))

    def _free(self) -> None:
        self._cuda.quietly("cudaFreeHost", self.address)

    def array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The memory as an array, valid until the buffer grows or closes."""
        memory = (ctypes.c_char * self.size).from_address(self.address)
        return np.ndarray(shape, dtype, memoryview(memory))


class Stream:
    """A queue of work on the device."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self._stream = cuda.call("cudaStreamCreateWithFlags", cuda.runtime.cudaStreamNonBlocking)

    @property
    def handle(self) -> int:
        """What TensorRT takes."""
        return int(self._stream)

    def to_device(self, target: Buffer, source: PinnedBuffer, size: int) -> None:
        self._copy(target.address, source.address, size, "cudaMemcpyHostToDevice")

    def to_host(self, target: PinnedBuffer, source: int, size: int) -> None:
        """Args: source: a device address."""
        self._copy(target.address, source, size, "cudaMemcpyDeviceToHost")

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        if size:
            kinds = self.cuda.runtime.cudaMemcpyKind
            self.cuda.call(
                "cudaMemcpyAsync", target, source, size, getattr(kinds, kind), self._stream
            )

    def record(self, event: Event) -> None:
        """Marks when the work so far is done."""
        self.cuda.call("cudaEventRecord", event.event, self._stream)

    def synchronize(self) -> None:
        """Waits for all work.

        Raises:
            CapabilityError: some of it failed.
        """
        self.cuda.call("cudaStreamSynchronize", self._stream)

    def drain(self) -> None:
        """Waits for all work, whatever becomes of it."""
        self.cuda.quietly("cudaStreamSynchronize", self._stream)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Records what `enqueue` puts on the stream, without running it.

        Raises:
            SvitDeployError: it cannot be recorded; the stream is as before.
        """
        mode = self.cuda.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.cuda.call("cudaStreamBeginCapture", self._stream, mode)
        try:
            enqueue()
        except BaseException:
            self.stop_capture()
            raise
        graph = self.cuda.call("cudaStreamEndCapture", self._stream)
        try:
            return Graph(self.cuda, self.cuda.call("cudaGraphInstantiate", graph, 0))
        finally:
            self.cuda.quietly("cudaGraphDestroy", graph)

    def stop_capture(self) -> None:
        """Gives up what is being recorded, if anything is."""
        error, *graph = self.cuda.runtime.cudaStreamEndCapture(self._stream)
        if not int(error):
            self.cuda.quietly("cudaGraphDestroy", *graph)
        self.cuda.quietly("cudaGetLastError")

    def launch(self, graph: Graph) -> None:
        self.cuda.call("cudaGraphLaunch", graph.executable, self._stream)

    def close(self) -> None:
        if self._stream is not None:
            self.cuda.quietly("cudaStreamDestroy", self._stream)
        self._stream = None


class Event:
    """A point in a stream, with its time."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.event = cuda.call("cudaEventCreate")

    def since(self, earlier: Event) -> float:
        """Milliseconds from another event to this one, both passed; resolution 0.5 us."""
        return float(self._cuda.call("cudaEventElapsedTime", earlier.event, self.event))

    def close(self) -> None:
        if self.event is not None:
            self._cuda.quietly("cudaEventDestroy", self.event)
        self.event = None


class Graph:
    """Recorded work that is launched as a whole."""

    def __init__(self, cuda: Cuda, executable: Any) -> None:
        self._cuda, self.executable = cuda, executable

    def close(self) -> None:
        if self.executable is not None:
            self._cuda.quietly("cudaGraphExecDestroy", self.executable)
        self.executable = None


def _import_runtime() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as error:
        missing = isinstance(error, ModuleNotFoundError)
        state = "not installed" if missing else f"broken ({' '.join(str(error).split())[:200]})"
        raise CapabilityError(
            f"NVIDIA GPUs are driven through the package cuda-bindings, which is {state}",
            "run: pip install cuda-bindings (of the driver's CUDA, 'cuda-bindings<13' on a Jetson)",
        ) from error


def _no_device() -> CapabilityError:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return CapabilityError(
            f"CUDA_VISIBLE_DEVICES is {visible!r}, which hides every GPU",
            "unset it, or set it to the number of a GPU",
        )
    return CapabilityError("no NVIDIA GPU was found", NO_GPU)


def _version(number: int) -> str:
    """`12040` -> `12.4`"""
    return f"{number // 1000}.{number % 1000 // 10}"
