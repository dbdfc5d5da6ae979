"""An execution context for one input shape, with its addresses and, later, its CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from svit_deploy.engines.device.binding import Binding
from svit_deploy.engines.device.cuda import Buffer, Cuda, Graph, Stream
from svit_deploy.engines.tensorrt.kernels import Kernels
from svit_deploy.engines.tensorrt.loading import Loaded
from svit_deploy.errors import InputError, SvitDeployError

RUN_AGAIN = "run again; if it fails again, build the engine again"


class Context(Binding):
    """A context that serves one shape of the input, for good.

    NVIDIA's guide asks for a context of its own for each captured graph, because a change of shape
    changes what a context keeps on the device. It also saves the shape inference of the next run.

    Args:
        kernels: makes the context.
        memory: the activations' memory; contexts that run one after another may share it.
        input_name, shape: of the only input.

    Raises:
        SvitDeployError: InputError if the engine does not take the shape, CapabilityError if out
            of memory.
    """

    def __init__(
        self,
        loaded: Loaded,
        kernels: Kernels,
        stream: Stream,
        memory: Buffer,
        profile: int,
        input_name: str,
        shape: tuple[int, ...],
        outputs: tuple[str, ...],
    ) -> None:
        self.profile = profile
        self._graph: Graph | None = None
        self._loaded, self._stream, self._addresses = loaded, stream, dict[str, int]()
        self._context = context = kernels.create_context()
        if context is None:
            raise loaded.failure("could not get an execution context", RUN_AGAIN)
        if loaded.engine.num_optimization_profiles > 1:
            if not context.set_optimization_profile_async(profile, stream.handle):
                raise loaded.failure(f"refused profile {profile}", RUN_AGAIN)
            stream.synchronize()
        if not context.set_input_shape(input_name, shape) or not _infers(context):
            raise loaded.failure(f"refused the shape {list(shape)}", RUN_AGAIN)
        if size := kernels.memory_bytes:
            memory.reserve(size)
            context.set_device_memory(memory.address, memory.size)
        found = {name: tuple(context.get_tensor_shape(name)) for name in outputs}
        self.shapes = {name: None if min(s, default=0) < 0 else s for name, s in found.items()}
        self._allocators = {
            name: _make_allocator(loaded.library.trt, loaded.cuda)
            for name, known in self.shapes.items()
            if known is None
        }
        for name, allocator in self._allocators.items():
            if not context.set_output_allocator(name, allocator):
                raise loaded.failure(f"refused an allocator for {name!r}", RUN_AGAIN)

        self.data_dependent = tuple(self._allocators)

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def bind(self, addresses: Mapping[str, int], in_host: Mapping[str, np.ndarray]) -> None:
        """A graph of other addresses is dropped."""
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                self._drop_graph()
                if not self._context.set_tensor_address(name, address):
                    raise self._loaded.failure(f"refused the memory of {name!r}", RUN_AGAIN)
                self._addresses[name] = address

    def tell(self, profiler: Any) -> None:
        """Tells an `IProfiler` the time of each layer of the runs from now on."""
        self._context.profiler = profiler

    def enqueue(self) -> None:
        for allocator in self._allocators.values():
            allocator.shape = allocator.error = None
        succeeded = self._context.execute_async_v3(self._stream.handle)
        for name, allocator in self._allocators.items():
            if allocator.error is not None:
                raise allocator.error
            if succeeded and allocator.shape is None:
                raise InputError(f"TensorRT did not tell the shape of {name!r}", RUN_AGAIN)
        if not succeeded:
            raise self._loaded.failure("could not be run", RUN_AGAIN)

    def output(self, name: str) -> tuple[int, tuple[int, ...]]:
        known = self.shapes[name]
        if known is not None:
            return self._addresses[name], known
        allocator = self._allocators[name]
        return allocator.buffer.address, allocator.shape

    def is_capturable(self) -> bool:
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(self._stream.handle))

    def capture(self) -> None:
        self._graph = self._stream.capture(self.enqueue)

    def launch(self) -> None:
        assert self._graph is not None
        self._stream.launch(self._graph)

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
        self._graph = None

    def close(self) -> None:
        self._drop_graph()
        self._context = None
        for allocator in self._allocators.values():
            allocator.buffer.close()


def _infers(context: Any) -> bool:
    """Whether the shapes of all tensors follow from those that were set."""
    try:
        return not context.infer_shapes()
    except RuntimeError:  # what the bindings make of a failure; the logger has its reason
        return False


def _make_allocator(trt: Any, cuda: Cuda) -> Any:
    """Memory for an output whose size the library tells while it runs."""

    class Allocator(trt.IOutputAllocator):
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.buffer = Buffer(cuda)
            self.shape: tuple[int, ...] | None = None
            self.error: SvitDeployError | None = None

        def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:
            try:
                self.buffer.reserve(size)
            except SvitDeployError as error:  # must not pass through native code
                self.error = error
            return self.buffer.address

        def reallocate_output_async(
            self, name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            return self.reallocate_output(name, memory, size, alignment)

        def notify_shape(self, name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return Allocator()
