"""The engines by name. A new one is its `Engine`, a row here, and an extra of the package."""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from svit_deploy.engines.base import Engine
from svit_deploy.engines.onnxruntime import (
    OnnxRuntimeEngine,
    available_providers,
    require_provider,
)
from svit_deploy.engines.openvino.library import (
    DEVICES,
    able_in,
    import_openvino,
    require_device,
)
from svit_deploy.engines.openvino.runner import OpenVinoEngine
from svit_deploy.engines.provider_choice import check_given
from svit_deploy.engines.providers import (
    BUILD_ENGINES,
    CPU,
    CUDA,
    NVIDIA,
    PROVIDERS,
    full_provider_name,
)
from svit_deploy.engines.settings import PRECISIONS, EngineChoice, floats_of
from svit_deploy.engines.tensorrt.gpu import check_products, require_gpu
from svit_deploy.engines.tensorrt.loading import check_engine
from svit_deploy.engines.tensorrt.runner import TensorRTEngine
from svit_deploy.errors import InputError, SvitDeployError, UsageError
from svit_deploy.machine.tensorrt import TARGETS
from svit_deploy.model.precision import FP8
from svit_deploy.options import options_of

GRAPH = ".onnx"
_NVIDIA_ONLY = ("device", "cuda_graph")
"""Options that mean something to ONNX Runtime on NVIDIA's providers alone."""


class Runtime(abc.ABC):
    """What makes engines of files. A runtime states every attribute without a default.

    Attributes:
        name: as after `--engine`.
        suffixes: of the files that it runs. One that runs graphs runs edited ones, too.
        options: fields of the settings that mean something to it, beside those of all.
        builds: what it runs is built of a graph, for one of these targets; nothing is by default.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = (GRAPH,)
    options: ClassVar[tuple[str, ...]]
    builds: ClassVar[tuple[str, ...]] = ()

    def runs(self, file: Path) -> bool:
        return file.suffix in self.suffixes

    @property
    def runs_graphs(self) -> bool:
        return GRAPH in self.suffixes

    def means(self, option: str, settings: EngineChoice) -> bool:
        """Whether an option means something to it, as it is asked for."""
        return option in self.options

    def given(self, settings: EngineChoice) -> dict[str, Any]:
        """The values of its options that the settings have."""
        meant = (name for name in self.options if self.means(name, settings))
        asked = {name: getattr(settings, name, None) for name in meant}
        return {name: value for name, value in asked.items() if value is not None}

    @abc.abstractmethod
    def load(self, model: Path | bytes, settings: EngineChoice, precision: str = "fp32") -> Engine:
        """Opens a model.

        Args:
            model: a file, or the bytes of a graph.
            precision: the model's own.

        Raises:
            SvitDeployError: see the engine's class.
        """

    @abc.abstractmethod
    def require(self, file: Path, settings: EngineChoice, precision: str = "fp32") -> None:
        """Raises a SvitDeployError where it cannot run a file here; called before any work."""

    @abc.abstractmethod
    def describe(self, file: Path, settings: EngineChoice, precision: str = "fp32") -> str:
        """What runs a file, in words."""

    @abc.abstractmethod
    def ways(self) -> Iterator[EngineChoice]:
        """How it may run models here: on each place, in each precision that it chooses itself.

        Raises:
            CapabilityError: its library is missing, or what it runs on.
        """

    def passes_over(self, precision: str, settings: EngineChoice) -> str | None:
        """Why a graph of that precision is not worth a measurement so, where that is known."""
        if self.lacks(precision, settings):
            return f"it has no products of {precision}"
        if self.widens(precision, settings):
            return f"it computes {precision} in float32"
        return None

    def widens(self, precision: str, settings: EngineChoice) -> bool:
        """Whether it computes parts of a graph of that precision in float32."""
        return False

    def lacks(self, precision: str, settings: EngineChoice) -> bool:
        """Whether it has no products of that precision, so that such graphs do not run at all."""
        return False


class OnnxRuntime(Runtime):
    name = "onnxruntime"
    options = ("provider", "provider_options", "device", "cuda_graph")

    def means(self, option: str, settings: EngineChoice) -> bool:
        provider = full_provider_name(settings.provider or CPU)
        if option == "device":
            return provider in NVIDIA
        return provider == CUDA if option == "cuda_graph" else super().means(option, settings)

    def given(self, settings: EngineChoice) -> dict[str, Any]:
        given = super().given(settings)
        if "device" in given:
            given["device"] = _gpu_number(given["device"])
        if settings.provider_options and settings.provider is None:
            raise UsageError(
                "--provider-option has no meaning without a provider",
                "add --provider, for example --provider cuda",
            )
        return given

    def load(self, model: Path | bytes, settings: EngineChoice, precision: str = "fp32") -> Engine:
        return OnnxRuntimeEngine(
            model, threads=settings.threads, precision=precision, **self.given(settings)
        )

    def require(self, file: Path, settings: EngineChoice, precision: str = "fp32") -> None:
        given = self.given(settings)
        check_given(given.get("provider_options", {}), given.get("device", 0))
        require_provider(settings.provider or CPU, given.get("device", 0))

    def describe(self, file: Path, settings: EngineChoice, precision: str = "fp32") -> str:
        place = f" on GPU {settings.device}" if "device" in self.given(settings) else ""
        return f"ONNX Runtime, provider {settings.provider or CPU}{place}"

    def ways(self) -> Iterator[EngineChoice]:
        here = available_providers()
        for name, provider in PROVIDERS.items():
            if provider in here:
                yield EngineChoice(engine=self.name, provider=None if name == CPU else name)

    def widens(self, precision: str, settings: EngineChoice) -> bool:
        if precision == FP8.name:  # only TensorRT makes products of it
            return full_provider_name(settings.provider or CPU) not in BUILD_ENGINES
        return floats_of(precision) != "fp32" and settings.provider in (None, CPU)

    def lacks(self, precision: str, settings: EngineChoice) -> bool:
        return precision == "bf16" and settings.provider in (None, CPU)


class OpenVino(Runtime):
    name = "openvino"
    options = ("engine_precision", "device")

    def load(self, model: Path | bytes, settings: EngineChoice, precision: str = "fp32") -> Engine:
        chosen = self._chosen(settings, precision)
        return OpenVinoEngine(model, threads=settings.threads, **chosen)

    def require(self, file: Path, settings: EngineChoice, precision: str = "fp32") -> None:
        require_device(**self._chosen(settings, precision))

    def describe(self, file: Path, settings: EngineChoice, precision: str = "fp32") -> str:
        chosen = self._chosen(settings, precision)
        return f"OpenVINO, {chosen['device']} in {PRECISIONS[chosen['precision']]}"

    def ways(self) -> Iterator[EngineChoice]:
        core = import_openvino().Core()
        for device in core.available_devices:
            named = None if device == DEVICES[0] else device
            for precision in able_in(core, device):
                yield EngineChoice(engine=self.name, engine_precision=precision, device=named)

    def passes_over(self, precision: str, settings: EngineChoice) -> str | None:
        if precision in PRECISIONS and precision != "fp32":
            return f"it makes {precision} of the fp32 graph, with --engine-precision"
        if precision == FP8.name:
            return "it rounds fp8 otherwise than ONNX says"
        if precision != "fp32" and settings.engine_precision != floats_of(precision):
            return f"nothing says what {precision} may be off by in {settings.engine_precision}"
        return super().passes_over(precision, settings)

    def _chosen(self, settings: EngineChoice, precision: str) -> dict[str, Any]:
        if precision == FP8.name:
            raise UsageError(
                "OpenVINO rounds an fp8 graph otherwise than ONNX says, by 1 % of what comes out",
                "use --engine onnxruntime, or export with --precision int8",
            )
        return {
            "precision": settings.engine_precision or floats_of(precision),
            "device": settings.device or "CPU",
        }


class TensorRT(Runtime):
    name = "tensorrt"
    suffixes = (".engine", ".plan", ".trt")
    options = ("device", "allow_foreign", "cuda_graph", "plugin_library")
    builds = tuple(TARGETS)

    def load(self, model: Path | bytes, settings: EngineChoice, precision: str = "fp32") -> Engine:
        if isinstance(model, bytes):
            raise TypeError("an engine is built of a graph, with `export`")
        return TensorRTEngine(model, **self.given(settings))

    def require(self, file: Path, settings: EngineChoice, precision: str = "fp32") -> None:
        given = self.given(settings)
        given.pop("cuda_graph", None)
        check_engine(file, **given)

    def describe(self, file: Path, settings: EngineChoice, precision: str = "fp32") -> str:
        return f"the engine {file.name}"

    def ways(self) -> Iterator[EngineChoice]:
        require_gpu()
        yield EngineChoice(engine=self.name)

    def passes_over(self, precision: str, settings: EngineChoice) -> str | None:
        if precision == FP8.name:
            try:
                check_products(require_gpu()[0], precision)
            except SvitDeployError as error:
                return error.message
        return super().passes_over(precision, settings)

    def given(self, settings: EngineChoice) -> dict[str, Any]:
        given = super().given(settings)
        given["device"] = _gpu_number(given.get("device", "0"))
        if "plugin_library" in given:
            given["plugin_library"] = Path(given["plugin_library"])
        return given


def _gpu_number(text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"--device {text} is no number of a GPU", "give 0, 1, ...")
    return int(text)


ONNXRUNTIME, TENSORRT = OnnxRuntime(), TensorRT()
RUNTIMES: dict[str, Runtime] = {row.name: row for row in (ONNXRUNTIME, OpenVino(), TENSORRT)}
"""By name. The first that runs a file does so by default."""


def runtime_named(name: str) -> Runtime:
    """An engine by name; raises UsageError if there is none."""
    if name not in RUNTIMES:
        raise UsageError(f"engine {name!r} is unknown", f"use one of {', '.join(RUNTIMES)}")
    return RUNTIMES[name]


def runtime_for(files: Sequence[Path], settings: EngineChoice) -> tuple[Runtime, Path]:
    """The engine for a model, and which of its files it runs.

    Args:
        files: of one model. The first is run, unless an engine is asked for that runs another; a
            provider asks for an engine that has such.

    Raises:
        InputError: no engine runs such files.
        UsageError: no such engine, or it runs none of the files.
    """
    able = [(row, file) for file in files for row in RUNTIMES.values() if row.runs(file)]
    if not able:
        known = ", ".join(suffix for row in (ONNXRUNTIME, TENSORRT) for suffix in row.suffixes)
        raise InputError(
            f"{files[0]} is no bundle and no model", f"give a bundle, or a file of {known}"
        )
    if settings.engine is not None:
        wanted = runtime_named(settings.engine)
        if fitting := [pair for pair in able if pair[0] is wanted]:
            return fitting[0]
        raise UsageError(
            f"{wanted.name} runs {' and '.join(wanted.suffixes)} files, not {files[0].name}",
            f"use --engine {' or '.join(row.name for row, _ in able)}"
            if wanted.runs_graphs
            else f"export with --target {wanted.name}",
        )
    with_provider = [pair for pair in able if settings.provider and "provider" in pair[0].options]
    return (with_provider or able)[0]


def check_options(used: Collection[Runtime], settings: EngineChoice) -> None:
    """Raises UsageError for an option that means nothing to any of the engines that will run."""
    declared = options_of(type(settings))
    for name in dict.fromkeys(name for row in RUNTIMES.values() for name in row.options):
        asked = name in declared and getattr(settings, name) != declared[name].default()
        if asked and used and not any(row.means(name, settings) for row in used):
            flag = declared[name].flag
            users = [row.name for row in RUNTIMES.values() if name in row.options]
            if ONNXRUNTIME.name in users and name in _NVIDIA_ONLY:
                users[users.index(ONNXRUNTIME.name)] = f"{ONNXRUNTIME.name} --provider cuda"
            raise UsageError(
                f"{flag} {getattr(settings, name)} has no meaning for "
                f"{' and '.join(row.name for row in used)}",
                f"leave it out, or use --engine {' or '.join(users)}",
            )
