"""Sessions of ONNX Runtime: opened with the provider that is asked for, or refused in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from svit_deploy.engines.base import TensorSpec
from svit_deploy.engines.onnxruntime_log import captured_output, first_error, one_line
from svit_deploy.engines.provider_choice import choose_providers
from svit_deploy.engines.providers import PROVIDERS, install_fix
from svit_deploy.errors import CapabilityError, InputError, SvitDeployError
from svit_deploy.machine.packages import require_onnxruntime
from svit_deploy.model.precision import FP8

OPTIMIZATIONS = {
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


def import_onnxruntime() -> ModuleType:
    """The library; raises CapabilityError where it is missing or broken."""
    with captured_output():  # it looks for devices, and complains of those it cannot read
        require_onnxruntime("running a model", "its graph")
        import onnxruntime

    return onnxruntime


@dataclass(frozen=True)
class Sessions:
    """Opens sessions of one model with one provider.

    Attributes:
        name: what sentences call the model.
        provider: its full name.
        given: options of the provider that go before ours.
        device: number of the GPU of an NVIDIA provider.
        kept: folder for what the provider builds, if that is kept.
        precision: of the model.
    """

    ort: ModuleType
    model: Path | bytes
    name: str
    provider: str
    given: Mapping[str, str]
    threads: int
    optimization: str
    device: int
    kept: Path | None = None
    precision: str = "fp32"

    def open(self, own: Mapping[str, str] | None = None, profile: Path | None = None) -> Any:
        """A session, or why the model or the provider cannot work.

        Args:
            own: more options of an NVIDIA provider.
            profile: where a trace of the runs goes, by what its name begins with.

        Raises:
            SvitDeployError: see `OnnxRuntimeEngine`.
        """
        ort, options = self.ort, self._options()
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        with captured_output() as printed:
            ort.set_default_logger_severity(_ERROR)
            wanted = choose_providers(
                ort,
                self.provider,
                self.given,
                self.model,
                options,
                self.device,
                own or {},
                self.kept,
            )
            try:
                session = ort.InferenceSession(
                    self.model if isinstance(self.model, bytes) else str(self.model),
                    options,
                    providers=wanted,
                    enable_fallback=0,
                )
            except Exception as error:  # ONNX Runtime's exceptions share no narrower class
                on_cpu = self.provider == PROVIDERS["cpu"]
                bad_model = on_cpu or type(error).__name__ in _BAD_MODEL
                fix = _LOAD_FIX if bad_model else ""
                raise self._failure("could not be loaded", error, fix) from error
            finally:
                ort.set_default_logger_severity(_FATAL)  # runs are timed, so nothing is captured
        session.disable_fallback()
        if session.get_providers()[0] != self.provider:
            reason = first_error(printed)
            raise CapabilityError(
                f"{self.provider} could not start and ONNX Runtime fell back to "
                f"{session.get_providers()[0]}{f': {reason}' if reason else ''}",
                install_fix(self.provider),
            )
        return session

    def spec(self, node: Any) -> TensorSpec:
        """An input or output of a session."""
        if node.type not in _DTYPES:
            raise InputError(
                f"{self.name}: {node.name!r} is a {node.type}, which has no NumPy type",
                "export the model with float32 inputs and outputs",
            )
        shape = tuple("?" if size is None else size for size in node.shape)
        return TensorSpec(node.name, _DTYPES[node.type], shape)

    def run_failure(self, error: Exception) -> SvitDeployError:
        """The error to raise where a run failed."""
        return self._failure("failed while running", error, _RUN_FIX)

    def _options(self) -> Any:
        options = self.ort.SessionOptions()
        options.log_severity_level = _FATAL  # the exceptions carry the same text
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = getattr(
            self.ort.GraphOptimizationLevel, OPTIMIZATIONS[self.optimization]
        )
        # Planning all values of a run as one block takes up to 1.8 times the memory of allocating
        # them as they come, and is no faster.
        options.enable_mem_pattern = False
        # A session's threads spin on for a while after a run and would steal the cores from the
        # next engine of an interleaved comparison.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # It would rewrite products of fp8 as those of int8, which it has no kernels for.
        if self.precision == FP8.name:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        return options

    def _failure(self, what: str, error: Exception, fix: str) -> SvitDeployError:
        """The error to raise: the model's fault if there is a fix for it, else the machine's."""
        reason = one_line(str(error))
        if _OUT_OF_MEMORY.search(str(error)):
            return CapabilityError(
                f"{self.name} {what}, out of memory: {reason}", "lower the batch size"
            )
        if fix:
            return InputError(f"{self.name} {what}: {reason}", fix)
        install = install_fix(self.provider)
        return CapabilityError(
            f"{self.name} {what} on {self.provider}: {reason}",
            f"check --provider-option, or {install}" if self.given else install,
        )
