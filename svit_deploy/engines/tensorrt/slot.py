"""Room for one run on the device: a stream, buffers on both sides, contexts and CUDA graphs."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from svit_deploy.engines.base import RunTimes
from svit_deploy.engines.tensorrt.binding import Binding
from svit_deploy.engines.tensorrt.cuda import Buffer, Event, PinnedBuffer, Stream
from svit_deploy.engines.tensorrt.graphs import CudaGraphs
from svit_deploy.engines.tensorrt.kernels import Kernels
from svit_deploy.engines.tensorrt.loading import Loaded
from svit_deploy.model.profiles import Shape

MAX_SHAPES = 16
OwnedT = TypeVar("OwnedT", Stream, Buffer, PinnedBuffer, Event)


@dataclass(frozen=True)
class Tensors:
    """An engine's tensors: the input's name, and the type of each by name."""

    input_name: str
    types: Mapping[str, np.dtype]
    outputs: tuple[str, ...]


class Slot:
    """Runs go one after another on a stream of its own, through page-locked memory.

    Each input shape has its execution context and CUDA graph; the `MAX_SHAPES` used last are kept.

    Args:
        cuda_graph: `auto`, `on` or `off`, see `CudaGraphs`.
        profiler: an `IProfiler` that is told of the layers.

    Raises:
        SvitDeployError: CapabilityError if out of memory, UsageError for an unknown graph mode.
    """

    def __init__(
        self,
        loaded: Loaded,
        kernels: Kernels,
        tensors: Tensors,
        cuda_graph: str,
        profiler: Any = None,
    ) -> None:
        self._profiler = profiler
        self._loaded, self._kernels, self._tensors = loaded, kernels, tensors
        self._bindings: OrderedDict[Shape, Binding] = OrderedDict()
        self._times: tuple[bool, float, int] | None = None
        self._running: tuple[Binding, dict[str, np.ndarray]] | None = None
        with contextlib.ExitStack() as made:

            def own(thing: OwnedT) -> OwnedT:
                return made.enter_context(contextlib.closing(thing))

            cuda = loaded.cuda
            self._stream = own(Stream(cuda))
            self._memory = own(Buffer(cuda))
            self._device = {name: own(Buffer(cuda)) for name in tensors.types}
            self._host = {name: own(PinnedBuffer(cuda)) for name in tensors.types}
            self._events = [own(Event(cuda)) for _ in range(4)]
            self.graphs = CudaGraphs(cuda_graph, self._stream)
            self._owned = made.pop_all()

    @property
    def is_running(self) -> bool:
        """Whether a run was started and not finished."""
        return self._running is not None

    @property
    def times(self) -> RunTimes | None:
        """Where the time of the last finished run went."""
        if self._times is None:
            return None
        graph, enqueue_ms, profile = self._times
        start, copied_in, computed, copied_out = self._events
        return RunTimes(
            gpu_ms=computed.since(copied_in),
            h2d_ms=copied_in.since(start),
            d2h_ms=copied_out.since(computed),
            enqueue_ms=enqueue_ms,
            graph=graph,
            profile=profile,
        )

    def start(self, images: np.ndarray, profile: int, outputs: Sequence[str]) -> None:
        """Puts a run on the stream.

        Args:
            images: the input.
            profile: the optimisation profile that serves it.
            outputs: names of the outputs to fetch.
        """
        name = self._tensors.input_name
        binding = self._binding(images.shape, profile)
        self._device[name].reserve(images.nbytes)
        self._host[name].reserve(images.nbytes)
        self._host[name].array(images.shape, images.dtype)[...] = images
        binding.bind(self._addresses(binding))

        start, copied_in, computed, copied_out = self._events
        stream, self._times = self._stream, None
        stream.record(start)
        stream.to_device(self._device[name], self._host[name], images.nbytes)
        stream.record(copied_in)
        began = time.perf_counter_ns()
        graph = self.graphs.enqueue(binding)
        enqueue_ms = (time.perf_counter_ns() - began) / 1e6
        stream.record(computed)
        views = {wanted: self._fetch(binding, wanted) for wanted in outputs}
        stream.record(copied_out)
        self._running = binding, views
        self._started = graph, enqueue_ms, profile

    def finish(self) -> dict[str, np.ndarray]:
        """Waits for the run that was started; the arrays are copies."""
        assert self._running is not None
        (binding, views), self._running = self._running, None
        self._stream.synchronize()
        self._times = self._started
        found = {name: view.copy() for name, view in views.items()}
        self.graphs.capture(binding)
        return found

    def abandon(self) -> None:
        """Waits for a run that nobody wants any more, if there is one."""
        if self._running is not None:
            self._running = None
            self._stream.drain()

    def record(self, event: Event) -> None:
        """Marks when what is on the stream is done."""
        self._stream.record(event)

    def close(self) -> None:
        for binding in self._bindings.values():
            binding.close()
        self._bindings.clear()
        self._owned.close()

    def _binding(self, shape: tuple[int, ...], profile: int) -> Binding:
        """The context for a shape, made if it is new; the one used longest ago makes room."""
        key = (shape[0], shape[1], shape[2], shape[3])
        if key in self._bindings:
            self._bindings.move_to_end(key)
            return self._bindings[key]
        while len(self._bindings) >= MAX_SHAPES:
            self._bindings.popitem(last=False)[1].close()
        self._bindings[key] = Binding(
            self._loaded,
            self._kernels,
            self._stream,
            self._memory,
            profile,
            self._tensors.input_name,
            key,
            self._tensors.outputs,
        )
        if self._profiler is not None:
            self._bindings[key].tell(self._profiler)
        return self._bindings[key]

    def _addresses(self, binding: Binding) -> dict[str, int]:
        """Where the input and the outputs of known size are, after making room for them."""
        names = [self._tensors.input_name]
        for name, shape in binding.shapes.items():
            if shape is not None:
                self._device[name].reserve(_size(shape, self._tensors.types[name]))
                names.append(name)
        return {name: self._device[name].address for name in names}

    def _fetch(self, binding: Binding, name: str) -> np.ndarray:
        """Enqueues the copy of an output; the array holds it once the stream is done."""
        address, shape = binding.output(name)
        dtype = self._tensors.types[name]
        size = _size(shape, dtype)
        self._host[name].reserve(size)
        self._stream.to_host(self._host[name], address, size)
        return self._host[name].array(shape, dtype)


def _size(shape: Sequence[int], dtype: np.dtype) -> int:
    """Bytes of an array."""
    return int(np.prod(shape)) * dtype.itemsize
