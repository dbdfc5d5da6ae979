"""ONNX Runtime behind the runner contract: any execution provider, no silent fallback."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np

from svit_deploy.engines.base import Engine, NodeTime, TensorSpec, check_feeds, check_outputs
from svit_deploy.engines.onnxruntime_log import captured_output, first_error, one_line
from svit_deploy.engines.onnxruntime_profile import WARM_UP, average_run, read_runs
from svit_deploy.engines.plugin_providers import PACKAGES, installed_plugins
from svit_deploy.engines.provider_choice import choose_providers, count_nodes
from svit_deploy.engines.providers import (
    NVIDIA,
    PROVIDERS,
    full_provider_name,
    install_fix,
)
from svit_deploy.errors import CapabilityError, InputError, SvitDeployError, UsageError
from svit_deploy.machine.packages import require_onnxruntime

_OPTIMIZATIONS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_DTYPES = {
    f"tensor({onnx_name})": np.dtype(name)
    for onnx_name, name in (
        ("bool", "bool"),
        ("float16", "float16"),
        ("float", "float32"),
        ("double", "float64"),
        *((f"{sign}int{bits}",) * 2 for sign in ("", "u") for bits in (8, 16, 32, 64)),
    )
}
# Raised for the file itself, whatever the provider; other errors of a GPU provider are its own.
_BAD_MODEL = ("NoSuchFile", "InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NotImplemented")
_LOAD_FIX = "check that the file is complete and uses standard ONNX operators"
_RUN_FIX = "check the shape and the values of the inputs, or export the model again"
_OUT_OF_MEMORY = re.compile(r"bad_alloc|out of memory|failed to allocate", re.IGNORECASE)
_ERROR, _FATAL = 3, 4  # ONNX Runtime's log severities
# An ONNX file: y = x + x, float32 [1]. Bytes, for nothing here needs the onnx package.
_DOUBLE = (
    b'\x08\n:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04'
    b"\n\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x14"
)


class OnnxRuntimeEngine(Engine):
    """An ONNX model in an ONNX Runtime session.

    Custom-operator libraries are never registered, so a model cannot bring native code.

    Args:
        model: an .onnx file, or its bytes (no external data then).
        provider: a short name of `PROVIDERS`, or a full one such as CUDAExecutionProvider.
        threads: threads of one operator; 0 is ONNX Runtime's default, one per physical core.
        graph_optimization: none, basic, extended or all.
        name: what sentences call a model that is given as bytes.
        provider_options: of the provider's own, instead of ours where both name one.
        device: number of the GPU of an NVIDIA provider.

    Raises:
        InputError: the file is missing, broken, or no model that ONNX Runtime can run.
        CapabilityError: ONNX Runtime or the provider is missing, or cannot work here.
        UsageError: an unknown provider, optimization level or thread count.
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
    ) -> None:
        if graph_optimization not in _OPTIMIZATIONS:
            raise UsageError(
                f"graph optimization {graph_optimization!r} is unknown",
                f"use one of {', '.join(_OPTIMIZATIONS)}",
            )
        if threads < 0:
            raise UsageError(f"{threads} threads make no sense", "give 0 (all cores) or more")
        self._provider = full_provider_name(provider)
        self._given, self._device = dict(provider_options or {}), device
        ort = _onnxruntime()
        plugin = self._provider in PACKAGES
        if not plugin:
            _check_available(ort, self._provider)
        self._name = name if isinstance(model, bytes) else str(model)
        if not isinstance(model, bytes) and not Path(model).is_file():
            raise InputError(f"{model} is not a file", "give the path of an .onnx file")

        options = partial(_session_options, ort, threads, graph_optimization)
        self._session = self._open(ort, model, options(), device)
        self._options, self._model = options, None if isinstance(model, bytes) else model
        self._inputs = tuple(self._spec(node) for node in self._session.get_inputs())
        self._outputs = tuple(self._spec(node) for node in self._session.get_outputs())
        self._output_names = [spec.name for spec in self._outputs]
        self._description = {
            "runtime": "onnxruntime",
            "version": ort.__version__,
            "provider": self._provider,
            "threads": threads,
            "graph_optimization": graph_optimization,
        }
        if self._provider in NVIDIA:
            self._description |= {
                "provider_options": self._given,
                "nodes": count_nodes(self._session, self._provider),
            }

    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def description(self) -> dict[str, Any]:
        return dict(self._description)

    @property
    def nvidia_gpu(self) -> int | None:
        return self._device if self._provider in NVIDIA else None

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        if self._session is None:
            raise RuntimeError("the engine is closed")
        check_feeds(self._inputs, feeds)
        names = self._output_names if outputs is None else list(outputs)
        check_outputs(self._outputs, names)
        if not names:
            return {}  # ONNX Runtime takes an empty list for "all"
        try:
            arrays = self._session.run(names, dict(feeds))
        except Exception as error:  # ONNX Runtime's exceptions share no narrower class
            raise self._failure("failed while running", error, _RUN_FIX) from error
        return dict(zip(names, arrays, strict=True))

    def profile(
        self, feeds: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[str] | None
    ) -> list[NodeTime] | None:
        if self._provider != PROVIDERS["cpu"] or self._model is None:
            return None  # of another device, the profiler tells what the host did
        names = self._output_names if outputs is None else list(outputs)
        ort, options = _onnxruntime(), self._options()
        options.enable_profiling = True
        with TemporaryDirectory() as folder:
            options.profile_file_prefix = str(Path(folder) / "run")
            session = self._open(ort, self._model, options, self._device)
            try:
                for feed in (*[feeds[0]] * WARM_UP, *feeds):
                    session.run(names, dict(feed))
            except Exception as error:  # as in run
                raise self._failure("failed while profiled", error, _RUN_FIX) from error
            finally:
                file = session.end_profiling()
            return average_run(read_runs(Path(file).read_text("utf-8"))[WARM_UP:])

    def close(self) -> None:
        self._session = None

    def _open(self, ort: ModuleType, model: Path | bytes, options: Any, device: int) -> Any:
        """Creates the session, or says why the model or the provider cannot work."""
        on_cpu = self._provider == PROVIDERS["cpu"]
        with captured_output() as printed:
            ort.set_default_logger_severity(_ERROR)
            wanted = choose_providers(ort, self._provider, self._given, model, options, device)
            try:
                session = ort.InferenceSession(
                    model if isinstance(model, bytes) else str(model),
                    options,
                    providers=wanted,
                    enable_fallback=0,
                )
            except Exception as error:  # as in run
                bad_model = on_cpu or type(error).__name__ in _BAD_MODEL
                fix = _LOAD_FIX if bad_model else ""
                raise self._failure("could not be loaded", error, fix) from error
            finally:
                ort.set_default_logger_severity(_FATAL)  # runs are timed, so nothing is captured
        session.disable_fallback()
        if session.get_providers()[0] != self._provider:
            reason = first_error(printed)
            raise CapabilityError(
                f"{self._provider} could not start and ONNX Runtime fell back to "
                f"{session.get_providers()[0]}{f': {reason}' if reason else ''}",
                install_fix(self._provider),
            )
        return session

    def _failure(self, what: str, error: Exception, fix: str) -> SvitDeployError:
        """The error to raise: the model's fault if there is a fix for it, else the machine's."""
        reason = one_line(str(error))
        if _OUT_OF_MEMORY.search(str(error)):
            return CapabilityError(
                f"{self._name} {what}, out of memory: {reason}", "lower the batch size"
            )
        if fix:
            return InputError(f"{self._name} {what}: {reason}", fix)
        install = install_fix(self._provider)
        return CapabilityError(
            f"{self._name} {what} on {self._provider}: {reason}",
            f"check --provider-option, or {install}" if self._given else install,
        )

    def _spec(self, node: Any) -> TensorSpec:
        if node.type not in _DTYPES:
            raise InputError(
                f"{self._name}: {node.name!r} is a {node.type}, which has no NumPy type",
                "export the model with float32 inputs and outputs",
            )
        shape = tuple("?" if size is None else size for size in node.shape)
        return TensorSpec(node.name, _DTYPES[node.type], shape)


def _session_options(ort: ModuleType, threads: int, graph_optimization: str) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL  # the exceptions carry the same text
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(
        ort.GraphOptimizationLevel, _OPTIMIZATIONS[graph_optimization]
    )
    # Planning all values of a run as one block takes up to 1.8 times the memory of allocating them
    # as they come, and is no faster.
    options.enable_mem_pattern = False
    # A session's threads spin on for a while after a run and would steal the cores from the next
    # engine of an interleaved comparison.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def available_providers() -> list[str]:
    """Full names of the providers in the installed ONNX Runtime, best first; some cannot start.

    Raises:
        CapabilityError: ONNX Runtime is missing or broken.
    """
    return [*_onnxruntime().get_available_providers(), *installed_plugins()]


def require_provider(provider: str) -> None:
    """Runs a graph of one operator with a provider, by its short or full name.

    Raises:
        UsageError: an unknown provider.
        CapabilityError: ONNX Runtime or the provider is missing, or cannot start here.
    """
    with OnnxRuntimeEngine(_DOUBLE, provider=provider, name="a graph of one operator") as engine:
        engine.run({"x": np.ones(1, np.float32)})


def _onnxruntime() -> ModuleType:
    with captured_output():  # it looks for devices, and complains of those it cannot read
        require_onnxruntime("running a model", "its graph")
        import onnxruntime

    return onnxruntime


def _check_available(ort: ModuleType, provider: str) -> None:
    here = ort.get_available_providers()
    if provider not in here:
        raise CapabilityError(
            f"ONNX Runtime {ort.__version__} has no {provider} here, only {', '.join(here)}",
            install_fix(provider),
        )
