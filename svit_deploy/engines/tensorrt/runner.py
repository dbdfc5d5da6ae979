"""TensorRT and TensorRT-RTX engines behind the runner contract."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from svit_deploy.engines.base import Engine, RunTimes, TensorSpec, check_feeds, check_outputs
from svit_deploy.engines.tensorrt.binding import Binding
from svit_deploy.engines.tensorrt.cuda import Buffer, Event, PinnedBuffer, Stream
from svit_deploy.engines.tensorrt.graphs import DYNAMIC, CudaGraphs
from svit_deploy.engines.tensorrt.inspector import LayerCounts, read_layers
from svit_deploy.engines.tensorrt.kernels import Kernels
from svit_deploy.engines.tensorrt.loading import Loaded, check_engine, load_engine
from svit_deploy.errors import InputError
from svit_deploy.model.profiles import Profile, Shape, choose_profile

MAX_SHAPES = 16
OwnedT = TypeVar("OwnedT", Stream, Buffer, PinnedBuffer, Event)


class TensorRTEngine(Engine):
    """An engine file on a GPU.

    Runs go one after another on a stream of their own, through staging buffers in page-locked
    memory. Each input shape has its execution context and CUDA graph; the `MAX_SHAPES` used last
    are kept.

    Args:
        path: an .engine file with its sidecar.
        allow_foreign: go on without a sidecar. An engine is native code: only for files whose
            origin you trust.
        cuda_graph: `auto`, `on` or `off`, see `CudaGraphs`.
        plugin_library: by default the one that `svit-deploy plugins build` made.
        device: number of the GPU.

    Raises:
        InputError: no engine, not the one its sidecar tells, or built for something else.
        CapabilityError: TensorRT, the GPU or the plugin library is missing, out of memory, or no
            graph can be captured where one is asked for.
        UsageError: an unknown graph mode, or no GPU of that number.
    """

    def __init__(
        self,
        path: Path,
        *,
        allow_foreign: bool = False,
        cuda_graph: str = "auto",
        plugin_library: Path | None = None,
        device: int = 0,
    ) -> None:
        found = check_engine(
            path, allow_foreign=allow_foreign, plugin_library=plugin_library, device=device
        )
        loaded = load_engine(found)
        self._loaded: Loaded | None = loaded
        self._number = device
        self._inputs, self._outputs = _tensors(loaded)
        self.profiles = _profiles(loaded, self._inputs[0].name)
        self.layers: LayerCounts | None = _layers(loaded)
        self._kernels = Kernels(loaded)
        self._times: tuple[bool, float, int] | None = None
        self._bindings: OrderedDict[Shape, Binding] = OrderedDict()
        self._types = {spec.name: spec.dtype for spec in self._inputs + self._outputs}
        with contextlib.ExitStack() as made:

            def own(thing: OwnedT) -> OwnedT:
                return made.enter_context(contextlib.closing(thing))

            cuda = loaded.cuda
            self._stream = own(Stream(cuda))
            self._memory = own(Buffer(cuda))
            self._device = {name: own(Buffer(cuda)) for name in self._types}
            self._host = {name: own(PinnedBuffer(cuda)) for name in self._types}
            self._events = [own(Event(cuda)) for _ in range(4)]
            self._graphs = CudaGraphs(cuda_graph, self._stream)
            if loaded.sidecar is not None and loaded.sidecar.tokens == "dynamic":
                self._graphs.forbid(DYNAMIC)
            self._owned = made.pop_all()

    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def description(self) -> dict[str, Any]:
        loaded = self._open()
        sidecar, gpu = loaded.sidecar, loaded.cuda.gpu
        return {
            "runtime": loaded.library.target,
            "version": loaded.library.version,
            "gpu": {"name": gpu.name, "compute_capability": gpu.compute_capability},
            "precision": None if sidecar is None else sidecar.precision,
            "profiles": [str(profile) for profile in self.profiles],
            "cuda_graph": self._graphs.describe(),
            "kernels": self._kernels.describe(),
            "layers": None if self.layers is None else self.layers.to_dict(),
        }

    @property
    def nvidia_gpu(self) -> int | None:
        return self._number

    @property
    def last_times(self) -> RunTimes | None:
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

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        loaded = self._open()
        check_feeds(self._inputs, feeds)
        names = [spec.name for spec in self._outputs] if outputs is None else list(outputs)
        check_outputs(self._outputs, names)
        loaded.cuda.use()
        name, array = self._inputs[0].name, feeds[self._inputs[0].name]
        binding = self._binding(array.shape)
        self._device[name].reserve(array.nbytes)
        self._host[name].reserve(array.nbytes)
        self._host[name].array(array.shape, array.dtype)[...] = array
        binding.bind(self._addresses(binding))

        start, copied_in, computed, copied_out = self._events
        stream, self._times = self._stream, None
        stream.record(start)
        stream.to_device(self._device[name], self._host[name], array.nbytes)
        stream.record(copied_in)
        began = time.perf_counter_ns()
        graph = self._graphs.enqueue(binding)
        enqueue_ms = (time.perf_counter_ns() - began) / 1e6
        stream.record(computed)
        views = {wanted: self._fetch(binding, wanted) for wanted in names}
        stream.record(copied_out)
        stream.synchronize()
        self._times = (graph, enqueue_ms, binding.profile)
        found = {wanted: view.copy() for wanted, view in views.items()}
        self._graphs.capture(binding)
        return found

    def close(self) -> None:
        if self._loaded is None:
            return
        self._kernels.keep()
        for binding in self._bindings.values():
            binding.close()
        self._bindings.clear()
        self._loaded = None
        self._owned.close()

    def _open(self) -> Loaded:
        if self._loaded is None:
            raise RuntimeError("the engine is closed")
        return self._loaded

    def _binding(self, shape: tuple[int, ...]) -> Binding:
        """The context for a shape, made if it is new; the one used longest ago makes room."""
        key = (shape[0], shape[1], shape[2], shape[3])
        if key in self._bindings:
            self._bindings.move_to_end(key)
            return self._bindings[key]
        profile = choose_profile(self.profiles, key)
        if profile is None:
            raise _outside(self.profiles, key)
        while len(self._bindings) >= MAX_SHAPES:
            self._bindings.popitem(last=False)[1].close()
        self._bindings[key] = Binding(
            self._open(),
            self._kernels,
            self._stream,
            self._memory,
            profile,
            self._inputs[0].name,
            key,
            tuple(spec.name for spec in self._outputs),
        )
        return self._bindings[key]

    def _addresses(self, binding: Binding) -> dict[str, int]:
        """Where the input and the outputs of known size are, after making room for them."""
        names = [self._inputs[0].name]
        for name, shape in binding.shapes.items():
            if shape is not None:
                self._device[name].reserve(_size(shape, self._types[name]))
                names.append(name)
        return {name: self._device[name].address for name in names}

    def _fetch(self, binding: Binding, name: str) -> np.ndarray:
        """Enqueues the copy of an output; the array holds it once the stream is done."""
        address, shape = binding.output(name)
        size = _size(shape, self._types[name])
        self._host[name].reserve(size)
        self._stream.to_host(self._host[name], address, size)
        return self._host[name].array(shape, self._types[name])


def _size(shape: Sequence[int], dtype: np.dtype) -> int:
    """Bytes of an array."""
    return int(np.prod(shape)) * dtype.itemsize


def _tensors(loaded: Loaded) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs; a size that is free is `?`.

    Raises:
        InputError: not one image input, or tensors that this runner cannot feed or read.
    """
    engine, trt = loaded.engine, loaded.library.trt
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    fix = "export the model again with svit-deploy"
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise InputError(f"{loaded.path.name} wants {name!r} in host memory", fix)
        if engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
            raise InputError(f"{loaded.path.name} has {name!r} in a vectorised format", fix)
        kind = engine.get_tensor_dtype(name)
        try:
            dtype = np.dtype(trt.nptype(kind))
        except TypeError:
            raise InputError(
                f"{loaded.path.name}: {name!r} is {kind.name}, which has no NumPy type", fix
            ) from None
        shape = tuple(size if size >= 0 else "?" for size in engine.get_tensor_shape(name))
        is_output = engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT
        (outputs if is_output else inputs).append(TensorSpec(name, dtype, shape))
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        listed = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in inputs)
        raise InputError(
            f"{loaded.path.name} takes {listed}, not one batch of images",
            "give an engine with one input [batch, 3, height, width]",
        )
    return tuple(inputs), tuple(outputs)


def _profiles(loaded: Loaded, input_name: str) -> tuple[Profile, ...]:
    if loaded.sidecar is not None:
        return loaded.sidecar.profiles
    engine = loaded.engine
    shapes = [
        [tuple(shape) for shape in engine.get_tensor_profile_shape(input_name, number)]
        for number in range(engine.num_optimization_profiles)
    ]
    return tuple(Profile(*three) for three in shapes)


def _layers(loaded: Loaded) -> LayerCounts | None:
    trt = loaded.library.trt
    inspector = loaded.engine.create_engine_inspector()
    return read_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _outside(profiles: Sequence[Profile], shape: Shape) -> InputError:
    """The error for a shape that no profile serves."""

    def distance(profile: Profile) -> int:
        sizes = zip(profile.min, shape, profile.max, strict=True)
        return sum(max(low - size, 0, size - high) for low, size, high in sizes)

    nearest = min(range(len(profiles)), key=lambda number: distance(profiles[number]))
    served = ", ".join(f"{profile} (profile {i})" for i, profile in enumerate(profiles))
    return InputError(
        f"the engine does not serve the shape {'x'.join(map(str, shape))}, only {served}; nearest "
        f"is profile {nearest}",
        "feed a shape within it, or build the engine with profiles that hold this one",
    )
