"""TensorRT and TensorRT-RTX engines behind the runner contract."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from svit_deploy.engines.arrays import Feed, in_host
from svit_deploy.engines.base import (
    Engine,
    Flight,
    NodeTime,
    RunTimes,
    TensorSpec,
    check_feeds,
    check_outputs,
)
from svit_deploy.engines.device.cuda import Stream
from svit_deploy.engines.device.graphs import DYNAMIC, CudaGraphs
from svit_deploy.engines.device.runs import DeviceRuns
from svit_deploy.engines.device.slot import Slot
from svit_deploy.engines.tensorrt.contexts import Contexts
from svit_deploy.engines.tensorrt.inspector import LayerCounts, layer_nodes, read_layers
from svit_deploy.engines.tensorrt.kernels import Kernels
from svit_deploy.engines.tensorrt.loading import Loaded, check_engine, load_engine
from svit_deploy.engines.tensorrt.profiler import layer_times, make_profiler
from svit_deploy.errors import InputError
from svit_deploy.model.profiles import Profile


class TensorRTEngine(Engine):
    """An engine file on a GPU.

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
        self.layers: LayerCounts | None = read_layers(_information(loaded))
        self._kernels = Kernels(loaded)
        self._runs = DeviceRuns(loaded.cuda, lambda: self._make_slot(cuda_graph))

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
            "cuda_graph": self._runs.graphs.describe(),
            "kernels": self._kernels.describe(),
            "layers": None if self.layers is None else self.layers.to_dict(),
        }

    @property
    def nvidia_gpu(self) -> int | None:
        return self._number

    @property
    def last_times(self) -> RunTimes | None:
        return self._runs.times

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        return in_host(self.run_kept(feeds, outputs))

    def run_kept(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str] | None = None,
        kept: Collection[str] = (),
    ) -> dict[str, Feed]:
        return self._open_runs().run(feeds, self._check(feeds, outputs), kept)

    def fly(
        self,
        feeds: Sequence[Mapping[str, np.ndarray]],
        outputs: Sequence[str] | None,
        runs: int,
        in_flight: int,
    ) -> Flight:
        device = self._open_runs()
        for feed in feeds:
            names = self._check(feed, outputs)
        return device.fly(feeds, names, runs, in_flight)

    def profile(
        self, feeds: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[str] | None
    ) -> list[NodeTime] | None:
        loaded = self._open()
        for feed in feeds:
            names = self._check(feed, outputs)
        loaded.cuda.use()
        profiler = make_profiler(loaded.library.trt)
        # Without a CUDA graph, whose launch has no layers.
        with contextlib.closing(self._make_slot("off", profiler)) as slot:

            def run(feed: Mapping[str, np.ndarray]) -> float:
                slot.start(feed, names)
                slot.finish()
                assert slot.times is not None
                return slot.times.gpu_ms

            run(feeds[0])
            profiler.milliseconds.clear()
            gpu_ms = sum(map(run, feeds))
        told = layer_nodes(_information(loaded))
        return layer_times(profiler.milliseconds, gpu_ms, len(feeds), told)

    def close(self) -> None:
        if self._loaded is None:
            return
        self._kernels.keep()
        self._loaded = None
        self._runs.close()

    def _make_slot(self, cuda_graph: str, profiler: Any = None) -> Slot[Contexts]:
        loaded = self._open()

        def open_contexts(stream: Stream, graphs: CudaGraphs) -> Contexts:
            if loaded.sidecar is not None and loaded.sidecar.tokens == "dynamic":
                graphs.forbid(DYNAMIC)
            return Contexts(
                loaded,
                self._kernels,
                stream,
                self._inputs,
                self._outputs,
                self.profiles,
                profiler,
            )

        return Slot(loaded.cuda, open_contexts, cuda_graph)

    def _check(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None) -> tuple[str, ...]:
        """Checks what a run is given; returns the names of the outputs to fetch."""
        check_feeds(self._inputs, feeds)
        names = tuple(spec.name for spec in self._outputs) if outputs is None else tuple(outputs)
        check_outputs(self._outputs, names)
        return names

    def _open_runs(self) -> DeviceRuns:
        self._open()
        return self._runs

    def _open(self) -> Loaded:
        if self._loaded is None:
            raise RuntimeError("the engine is closed")
        return self._loaded


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
    if len(inputs) != 1 or len(inputs[0].shape) not in (4, 5):
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


def _information(loaded: Loaded) -> str:
    """What the inspector tells of the layers, as JSON."""
    trt = loaded.library.trt
    inspector = loaded.engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
