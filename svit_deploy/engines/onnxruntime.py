"""ONNX Runtime behind the runner contract: any execution provider, no silent fallback."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
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
from svit_deploy.engines.device.cuda import Cuda, Stream
from svit_deploy.engines.device.graphs import CudaGraphs
from svit_deploy.engines.device.runs import DeviceRuns
from svit_deploy.engines.device.slot import Slot
from svit_deploy.engines.kept import Kept
from svit_deploy.engines.onnxruntime_device import DeviceSession
from svit_deploy.engines.onnxruntime_profile import WARM_UP, average_run, read_runs
from svit_deploy.engines.onnxruntime_session import OPTIMIZATIONS, Sessions, import_onnxruntime
from svit_deploy.engines.plugin_providers import PACKAGES, installed_plugins
from svit_deploy.engines.provider_choice import count_nodes
from svit_deploy.engines.providers import (
    NVIDIA,
    PROVIDERS,
    full_provider_name,
    install_fix,
)
from svit_deploy.errors import CapabilityError, InputError, UsageError

# An ONNX file: y = x + x, float32 [1]. Bytes, for nothing here needs the onnx package.
_DOUBLE = (
    b'\x08\n:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04'
    b"\n\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x14"
)


class OnnxRuntimeEngine(Engine):
    """An ONNX model in an ONNX Runtime session.

    NVIDIA's providers run in memory and on a stream of ours, as TensorRT engines do; the others
    from host memory to host memory. Custom-operator libraries are never registered, so a model
    cannot bring native code.

    Args:
        model: an .onnx file, or its bytes (no external data then).
        provider: a short name of `PROVIDERS`, or a full one such as CUDAExecutionProvider.
        threads: threads of one operator; 0 is ONNX Runtime's default, one per physical core.
        graph_optimization: none, basic, extended or all.
        name: what sentences call a model that is given as bytes.
        provider_options: of the provider's own, instead of ours where both name one.
        device: number of the GPU of an NVIDIA provider.
        cuda_graph: `auto`, `on` or `off` on the CUDA provider, see `CudaGraphs`.
        precision: of the model.

    Raises:
        InputError: the file is missing, broken, or no model that ONNX Runtime can run.
        CapabilityError: ONNX Runtime or the provider is missing, or cannot work here.
        UsageError: an unknown provider, optimization level, thread count or graph mode, no GPU of
            that number, or an option of the provider that is not the user's.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        provider: str = "cpu",
        threads: int = 0,
        graph_optimization: str = "all",
        name: str = "the model",
        provider_options: Mapping[str, str] | None = None,
        device: int = 0,
        cuda_graph: str = "auto",
        precision: str = "fp32",
    ) -> None:
        if graph_optimization not in OPTIMIZATIONS:
            raise UsageError(
                f"graph optimization {graph_optimization!r} is unknown",
                f"use one of {', '.join(OPTIMIZATIONS)}",
            )
        if threads < 0:
            raise UsageError(f"{threads} threads make no sense", "give 0 (all cores) or more")
        self._provider, self._device = full_provider_name(provider), device
        ort, given = import_onnxruntime(), dict(provider_options or {})
        if self._provider not in PACKAGES:
            _check_available(ort, self._provider)
        if not isinstance(model, bytes) and not Path(model).is_file():
            raise InputError(f"{model} is not a file", "give the path of an .onnx file")
        name = name if isinstance(model, bytes) else str(model)
        cuda = Cuda(device) if self._provider in NVIDIA else None
        self._kept = None if cuda is None else _open_kept(self._provider, model, given, cuda)
        kept = None if self._kept is None else self._kept.path
        self._sessions = sessions = Sessions(
            ort,
            model,
            name,
            self._provider,
            given,
            threads,
            graph_optimization,
            device,
            kept,
            precision,
        )
        self._on_device: DeviceRuns[DeviceSession] | None = None
        if cuda is not None:
            self._on_device = _open_on_device(sessions, cuda, cuda_graph)
            self._session: Any = self._on_device.program.session
        else:
            self._session = sessions.open()
        self._inputs = tuple(sessions.spec(node) for node in self._session.get_inputs())
        self._outputs = tuple(sessions.spec(node) for node in self._session.get_outputs())
        self._description = {
            "runtime": "onnxruntime",
            "version": ort.__version__,
            "provider": self._provider,
            "threads": threads,
            "graph_optimization": graph_optimization,
        }
        if self._provider in NVIDIA:
            self._description |= {
                "provider_options": given,
                "nodes": count_nodes(self._session, self._provider),
            }

    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def description(self) -> dict[str, Any]:
        if self._on_device is None:
            return dict(self._description)
        return self._description | {"cuda_graph": self._on_device.graphs.describe()}

    @property
    def nvidia_gpu(self) -> int | None:
        return self._device if self._provider in NVIDIA else None

    @property
    def last_times(self) -> RunTimes | None:
        return None if self._on_device is None else self._on_device.times

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        if self._on_device is not None:
            return in_host(self.run_kept(feeds, outputs))
        names = self._check(feeds, outputs)
        if not names:
            return {}  # ONNX Runtime takes an empty list for "all"
        try:
            arrays = self._session.run(names, dict(feeds))
        except Exception as error:  # ONNX Runtime's exceptions share no narrower class
            raise self._sessions.run_failure(error) from error
        return dict(zip(names, arrays, strict=True))

    def run_kept(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str] | None = None,
        kept: Collection[str] = (),
    ) -> dict[str, Feed]:
        if self._on_device is None:
            return super().run_kept(feeds, outputs, kept)
        return self._on_device.run(feeds, self._check(feeds, outputs), kept)

    def fly(
        self,
        feeds: Sequence[Mapping[str, np.ndarray]],
        outputs: Sequence[str] | None,
        runs: int,
        in_flight: int,
    ) -> Flight | None:
        if self._on_device is None:
            return None
        for feed in feeds:
            names = self._check(feed, outputs)
        return self._on_device.fly(feeds, names, runs, in_flight)

    def profile(
        self, feeds: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[str] | None
    ) -> list[NodeTime] | None:
        if self._provider != PROVIDERS["cpu"] or isinstance(self._sessions.model, bytes):
            return None  # of another device, the profiler tells what the host did
        names = self._check(feeds[0], outputs)
        with TemporaryDirectory() as folder:
            session = self._sessions.open(profile=Path(folder) / "run")
            try:
                for feed in (*[feeds[0]] * WARM_UP, *feeds):
                    session.run(names, dict(feed))
            except Exception as error:  # as in run
                raise self._sessions.run_failure(error) from error
            finally:
                file = session.end_profiling()
            return average_run(read_runs(Path(file).read_text("utf-8"))[WARM_UP:])

    def close(self) -> None:
        if self._session is None:
            return
        self._session = None
        if self._on_device is not None:
            self._on_device.close()
        if self._kept is not None:  # now, for a provider writes some of it when its session ends
            self._kept.keep()

    def _check(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None) -> list[str]:
        """Checks what a run is given; returns the names of the outputs to fetch."""
        if self._session is None:
            raise RuntimeError("the engine is closed")
        check_feeds(self._inputs, feeds)
        names = [spec.name for spec in self._outputs] if outputs is None else list(outputs)
        check_outputs(self._outputs, names)
        return names


def _open_kept(
    provider: str, model: Path | bytes, given: Mapping[str, str], cuda: Cuda
) -> Kept | None:
    from svit_deploy.engines.nvidia_providers import open_kept  # reads graphs

    return open_kept(provider, model, given, cuda)


def _open_on_device(sessions: Sessions, cuda: Cuda, cuda_graph: str) -> DeviceRuns[DeviceSession]:
    from svit_deploy.engines.nvidia_providers import what_waits  # reads graphs

    waits = what_waits(sessions.model)

    def open_session(stream: Stream, graphs: CudaGraphs) -> DeviceSession:
        return DeviceSession(sessions, stream, graphs, waits)

    return DeviceRuns(cuda, lambda: Slot(cuda, open_session, cuda_graph))


def available_providers() -> list[str]:
    """Full names of the providers in the installed ONNX Runtime, best first; some cannot start.

    Raises:
        CapabilityError: ONNX Runtime is missing or broken.
    """
    return [*import_onnxruntime().get_available_providers(), *installed_plugins()]


def require_provider(provider: str, device: int = 0) -> None:
    """Runs a graph of one operator with a provider, by its short or full name.

    Raises:
        UsageError: an unknown provider, or no GPU of that number.
        CapabilityError: ONNX Runtime or the provider is missing, or cannot start here.
    """
    with OnnxRuntimeEngine(
        _DOUBLE,
        name="a graph of one operator",
        provider=provider,
        device=device,
        cuda_graph="off",
    ) as engine:
        engine.run({"x": np.ones(1, np.float32)})


def _check_available(ort: ModuleType, provider: str) -> None:
    here = ort.get_available_providers()
    if provider not in here:
        raise CapabilityError(
            f"ONNX Runtime {ort.__version__} has no {provider} here, only {', '.join(here)}",
            install_fix(provider),
        )
