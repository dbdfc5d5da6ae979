"""Room for one run on the device: a stream, buffers on both sides, bindings and CUDA graphs."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from svit_deploy.engines.arrays import Feed, OnDevice
from svit_deploy.engines.base import RunTimes
from svit_deploy.engines.device.binding import Binding, Program
from svit_deploy.engines.device.cuda import Buffer, Cuda, Event, PinnedBuffer, Stream
from svit_deploy.engines.device.graphs import CudaGraphs

MAX_SHAPES = 16
OwnedT = TypeVar("OwnedT", bound="Closes")
ProgramT = TypeVar("ProgramT", bound=Program)


class Closes(Protocol):
    def close(self) -> None: ...


class Slot(Generic[ProgramT]):
    """Runs go one after another on a stream of its own, through page-locked memory.

    Each set of input shapes has its binding and CUDA graph; the `MAX_SHAPES` used last are kept.

    Args:
        open_program: makes what it runs, for its stream; it may forbid CUDA graphs.
        cuda_graph: `auto`, `on` or `off`, see `CudaGraphs`.

    Attributes:
        program: what it runs.

    Raises:
        SvitDeployError: CapabilityError if out of memory, UsageError for an unknown graph mode.
    """

    def __init__(
        self,
        cuda: Cuda,
        open_program: Callable[[Stream, CudaGraphs], ProgramT],
        cuda_graph: str,
    ) -> None:
        self._cuda = cuda
        self._bindings: OrderedDict[tuple[tuple[int, ...], ...], Binding] = OrderedDict()
        self._times: tuple[bool, float, int | None] | None = None
        self._running: Binding | None = None
        self.graphs = CudaGraphs(cuda_graph)
        with contextlib.ExitStack() as made:

            def own(thing: OwnedT) -> OwnedT:
                return made.enter_context(contextlib.closing(thing))

            self._stream = own(Stream(cuda))
            self.program = program = own(open_program(self._stream, self.graphs))
            self._inputs = [spec.name for spec in program.inputs]
            self._types = {spec.name: spec.dtype for spec in program.inputs + program.outputs}
            self._device = {name: own(Buffer(cuda)) for name in self._types}
            self._host = {name: own(PinnedBuffer(cuda)) for name in self._types}
            self._events = [own(Event(cuda)) for _ in range(4)]
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

    def start(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str], kept: Collection[str] = ()
    ) -> None:
        """Puts a run on the stream.

        Args:
            feeds: an array for each input, in host memory or on the device.
            outputs: names of the outputs to fetch.
            kept: those of them that stay on the device.
        """
        binding = self._binding(tuple(feeds[name].shape for name in self._inputs))
        read_here = {name: self._in_host(feeds[name]) for name in self.program.host_inputs}
        placed = {name: feed for name, feed in feeds.items() if name not in read_here}
        addresses = {name: self._place(name, feed) for name, feed in placed.items()}
        binding.bind(addresses | self._room(binding), read_here)

        start, copied_in, computed, copied_out = self._events
        stream, self._times = self._stream, None
        stream.record(start)
        for name, feed in placed.items():
            if isinstance(feed, np.ndarray):
                stream.to_device(self._device[name], self._host[name], feed.nbytes)
        stream.record(copied_in)
        began = time.perf_counter_ns()
        graph = self.graphs.enqueue(binding)
        enqueue_ms = (time.perf_counter_ns() - began) / 1e6
        stream.record(computed)
        self._kept = tuple(name for name in outputs if name in kept)
        self._views = {
            name: self._fetch(binding, name) for name in outputs if name not in self._kept
        }
        stream.record(copied_out)
        self._running = binding
        self._started = graph, enqueue_ms, binding.profile

    def finish(self) -> dict[str, Feed]:
        """Waits for the run that was started; arrays in host memory are copies."""
        assert self._running is not None
        binding, self._running = self._running, None
        self._stream.synchronize()
        self._times = self._started
        found: dict[str, Feed] = {name: view.copy() for name, view in self._views.items()}
        found |= {name: self._lend(binding, name) for name in self._kept}
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

    def _binding(self, key: tuple[tuple[int, ...], ...]) -> Binding:
        """What serves some shapes, made if they are new; that used longest ago makes room."""
        if key in self._bindings:
            self._bindings.move_to_end(key)
            return self._bindings[key]
        while len(self._bindings) >= MAX_SHAPES:
            self._bindings.popitem(last=False)[1].close()
        shapes = dict(zip(self._inputs, key, strict=True))
        self._bindings[key] = made = self.program.binding(shapes)
        return made

    def _place(self, name: str, feed: Feed) -> int:
        """Where on the device an input will be: where it is, or where it is copied to."""
        if isinstance(feed, OnDevice):
            return feed.address
        self._device[name].reserve(feed.nbytes)
        self._host[name].reserve(feed.nbytes)
        self._host[name].array(feed.shape, feed.dtype)[...] = feed
        return self._device[name].address

    def _in_host(self, feed: Feed) -> np.ndarray:
        """An input that the program reads in host memory; one on the device is waited for."""
        if isinstance(feed, np.ndarray):
            return feed
        with contextlib.closing(PinnedBuffer(self._cuda)) as buffer:
            buffer.reserve(feed.nbytes)
            self._stream.to_host(buffer, feed.address, feed.nbytes)
            self._stream.synchronize()
            return buffer.array(feed.shape, feed.dtype).copy()

    def _room(self, binding: Binding) -> dict[str, int]:
        """Where the outputs of known size go, after making room for them."""
        known = {name: shape for name, shape in binding.shapes.items() if shape is not None}
        for name, shape in known.items():
            self._device[name].reserve(_size(shape, self._types[name]))
        return {name: self._device[name].address for name in known}

    def _fetch(self, binding: Binding, name: str) -> np.ndarray:
        """Enqueues the copy of an output; the array holds it once the stream is done."""
        address, shape = binding.output(name)
        dtype = self._types[name]
        size = _size(shape, dtype)
        self._host[name].reserve(size)
        self._stream.to_host(self._host[name], address, size)
        return self._host[name].array(shape, dtype)

    def _lend(self, binding: Binding, name: str) -> OnDevice:
        return OnDevice(*binding.output(name), self._types[name])


def _size(shape: Sequence[int], dtype: np.dtype) -> int:
    """Bytes of an array."""
    return int(np.prod(shape)) * dtype.itemsize
