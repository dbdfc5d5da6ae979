"""From an engine file to an engine in memory; nothing is deserialised before it is known to fit."""

from __future__ import annotations

import functools
import json
import logging
import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svit_deploy.engines.device.cuda import Cuda
from svit_deploy.engines.tensorrt.rtx import require_short_name
from svit_deploy.engines.tensorrt.sidecar import BUILD_AGAIN, Sidecar, read_sidecar, sidecar_path
from svit_deploy.errors import CapabilityError, InputError, SvitDeployError
from svit_deploy.io.files import hash_file, reading
from svit_deploy.machine.tensorrt import ENTERPRISE, NAMES, RTX, Library, load_library
from svit_deploy.plugins import library_path

log = logging.getLogger(__name__)

_MAGIC = {b"ftrt": ENTERPRISE, b"vtrt": RTX}
_MAX_JSON = 2**20
_OUT_OF_MEMORY = re.compile(r"out ?of ?memory|cudaErrorMemoryAllocation", re.IGNORECASE)
_SOURCE_PLACE = re.compile(r"\s*(In \w+ at|at) /\S+:\d+")


@dataclass(frozen=True)
class Runnable:
    """An engine file that fits this machine, and what it needs.

    Attributes:
        sidecar: what was recorded of it; None for a foreign engine.
        plugins: the library to load before it, if it needs one.
    """

    path: Path
    library: Library
    cuda: Cuda
    sidecar: Sidecar | None
    plugins: Path | None


@dataclass(frozen=True)
class Loaded:
    """A deserialised engine and what it lives on.

    Attributes:
        sidecar: what was recorded of it; None for a foreign engine.
        engine: the library's ICudaEngine.
        runtime: its IRuntime, which must outlive it.
    """

    path: Path
    library: Library
    cuda: Cuda
    sidecar: Sidecar | None
    engine: Any
    runtime: Any

    def failure(self, what: str, fix: str) -> SvitDeployError:
        """The error to raise where the library failed: with the first error that it logged."""
        return failure(self.library, f"{self.path.name} {what}", fix)


def check_engine(
    path: Path,
    *,
    allow_foreign: bool = False,
    plugin_library: Path | None = None,
    device: int = 0,
) -> Runnable:
    """Checks an engine without loading it.

    Args:
        allow_foreign: go on without a sidecar; one that is there must fit all the same.
        plugin_library: a library of plugins to load; by default the one `plugins build` made,
            where the engine needs it.

    Raises:
        InputError: no engine, not the one its sidecar tells, or built for something else.
        CapabilityError: TensorRT, the GPU or the plugin library is missing.
    """
    head = read_head(path)
    foreign = allow_foreign and not sidecar_path(path).exists()
    sidecar = None if foreign else read_sidecar(path)
    library = load_library(_MAGIC.get(head, ENTERPRISE) if sidecar is None else sidecar.target)
    if sidecar is not None:
        _check_version(path, sidecar, library)
    cuda = Cuda(device)
    if sidecar is not None:
        _check_gpu(path, sidecar, cuda)
    return Runnable(path, library, cuda, sidecar, _find_plugins(path, sidecar, plugin_library))


def load_engine(found: Runnable) -> Loaded:
    """Loads an engine that was checked.

    Raises:
        InputError: it cannot be loaded.
        CapabilityError: out of memory, or the plugin library is of another TensorRT.
    """
    path, library, plugins = found.path, found.library, found.plugins
    if plugins is not None and library.target == RTX:
        require_short_name()
    if found.sidecar is None:
        log.warning("%s has no sidecar: nothing says where its native code is from", path)
    logger_of(library).take()  # what earlier failures left
    runtime = library.trt.Runtime(logger_of(library))
    if plugins is not None and runtime.get_plugin_registry().load_library(str(plugins)) is None:
        reason = logger_of(library).take()
        raise CapabilityError(
            f"{library.name} cannot use the plugin library {plugins}{reason and f': {reason}'}",
            "build it for this TensorRT: svit-deploy plugins build --tensorrt-include DIR",
        )
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise failure(library, f"{path} could not be loaded", _again(library.target))
    return Loaded(path, library, found.cuda, found.sidecar, engine, runtime)


def failure(library: Library, what: str, fix: str) -> SvitDeployError:
    """An error with the library's own reason: the machine's if out of memory, else the input's."""
    reason = logger_of(library).take()
    if _OUT_OF_MEMORY.search(reason):
        return CapabilityError(
            f"{what}, the GPU is out of memory: {reason}",
            "lower the batch size, or free the GPU (nvidia-smi tells who uses it)",
        )
    return InputError(f"{what} by {library.name}{reason and f': {reason}'}", fix)


@functools.cache
def _make_logger(trt: Any) -> Any:
    """The library keeps the first logger of a process, so there is one for all engines."""
    severe = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=32)

        def log(self, severity: Any, message: str) -> None:
            log.debug("%s", message)
            if severity in severe:
                self.errors.append(message)

        def take(self) -> str:
            """The first error since the last call, in one line; others follow from it."""
            first = " ".join(self.errors[0].split()) if self.errors else ""
            self.errors.clear()
            return _SOURCE_PLACE.sub("", first)[:240].rstrip(" .")

    return Log()


def logger_of(library: Library) -> Any:
    """The logger of a library; `take()` gives the first error since the last call."""
    return _make_logger(library.trt)


def _again(target: str) -> str:
    return f"{BUILD_AGAIN} {target}"


def read_head(path: Path) -> bytes:
    """The first four bytes of an engine.

    Raises:
        InputError: not a file, empty, unreadable, or with something in front of the engine.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file", "give the path of an .engine file")
    with reading(path), path.open("rb") as file:
        head = file.read(4)
        length = int.from_bytes(head, "little")
        text = file.read(length) if 1 < length <= _MAX_JSON else b""
    if not head:
        raise InputError(f"{path} is empty", "copy it again, or build it again")
    if text.startswith(b"{") and _is_json(text):
        raise InputError(
            f"{path} has {length} bytes of JSON in front of the engine, as ultralytics writes it",
            f"cut the first {4 + length} bytes off, or build an engine with svit-deploy export",
        )
    return head


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _check_version(path: Path, sidecar: Sidecar, library: Library) -> None:
    if sidecar.tensorrt != library.version:
        raise InputError(
            f"{path} was built by {NAMES[library.target]} {sidecar.tensorrt}, and "
            f"{library.version} is installed: an engine runs on its own version only",
            _again(sidecar.target),
        )


def _check_gpu(path: Path, sidecar: Sidecar, cuda: Cuda) -> None:
    built, here = sidecar.gpu, cuda.gpu
    if built is None:
        if sidecar.target != RTX:
            raise InputError(f"the sidecar of {path} names no GPU", _again(sidecar.target))
    elif built.compute_capability != here.compute_capability:
        raise InputError(
            f"{path} was built for {built.name} ({built.sm}), and this machine has {here.name} "
            f"({here.sm})",
            _again(sidecar.target),
        )


def _find_plugins(path: Path, sidecar: Sidecar | None, given: Path | None) -> Path | None:
    """The plugin library to load, which must be the one that the engine was built with."""
    if given is not None and not given.is_file():
        raise InputError(f"{given} is not a file", "give the path of libsvit_trt.so")
    if sidecar is None or not sidecar.plugins:
        return given
    library, target = library_path() if given is None else given, sidecar.target
    for name, sha256 in sidecar.plugins:
        if hash_file(library) != sha256:
            raise InputError(
                f"{path} was built with another {name} than {library} (sha256 differs)",
                f"run with the library it was built with, or {_again(target)}",
            )
    return library
