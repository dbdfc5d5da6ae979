"""Which of NVIDIA's software is here, for `doctor`: TensorRT, its Python helpers, the compiler."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from svit_deploy.errors import CapabilityError
from svit_deploy.machine.environment import installed_version
from svit_deploy.machine.tensorrt import ENTERPRISE, INSTALL, OLDEST, TARGETS, is_too_old
from svit_deploy.model.precision import FP8, has_products
from svit_deploy.plugins import library_path
from svit_deploy.plugins.build import find_cmake, find_nvcc

BUILD = {target: f"export --target {target}" for target in TARGETS}
WITH_PLUGINS = "export --target tensorrt --plugins"
RUN, COMPILE = "engines: verify, bench", "plugins build"
COMMANDS = (*BUILD.values(), WITH_PLUGINS, RUN, COMPILE)
State = Literal["ok", "missing", "too old", "broken", "unusable"]
Found = tuple[str, State, str, tuple[str, ...], str]
"""Name, state, detail, the commands that need it, and what to type if it is not ok."""


def examine_nvidia() -> Iterator[Found]:
    """Looks without importing anything: TensorRT starts CUDA when it is imported."""
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    yield (
        "nvidia driver",
        "ok" if driver else "missing",
        f"found{_gpus()}" if driver else "none: CPU only",
        (BUILD[ENTERPRISE], WITH_PLUGINS, RUN),
        "" if driver else "run on a machine with an NVIDIA GPU and its driver",
    )
    for target, module in TARGETS.items():
        version = _version(module)
        state: State = "missing" if version is None else "ok"
        detail = version or "not installed"
        if version and is_too_old(target, version):
            state, detail = "too old", f"{version}, needs {OLDEST}"
        fix = "" if state == "ok" else INSTALL[target].removeprefix("run: ")
        plugins = (WITH_PLUGINS,) if target == ENTERPRISE else ()
        yield module, state, detail, (BUILD[target], *plugins), fix
    bindings = _version("cuda.bindings")
    fix = "pip install cuda-bindings nvidia-ml-py"
    yield (
        "cuda-bindings",
        "ok" if bindings else "missing",
        bindings or "not installed",
        (BUILD[ENTERPRISE], WITH_PLUGINS, RUN),
        "" if bindings else fix,
    )
    tools: tuple[tuple[str, Callable[[], str | Path], State, str], ...] = (
        ("nvcc", find_nvcc, "missing", COMPILE),
        ("cmake", find_cmake, "missing", COMPILE),
        ("plugin library", library_path, "unusable", WITH_PLUGINS),
    )
    for name, find, otherwise, command in tools:
        try:
            yield name, "ok", str(find()), (command,), ""
        except CapabilityError as error:
            yield name, otherwise, error.message, (command,), error.fix.removeprefix("run ")


def _gpus() -> str:
    """The GPUs and what they lack, in words after others; empty where nvidia-smi does not tell."""
    if (program := shutil.which("nvidia-smi")) is None:
        return ""
    asked = [program, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    found = []
    for line in done.stdout.splitlines():
        name, _, capability = (part.strip() for part in line.rpartition(","))
        if not re.fullmatch(r"\d+\.\d+", capability):
            return ""  # a driver that does not tell it
        lacks = "" if has_products(capability, FP8.name) else ", no products of fp8"
        found.append(f"{name} (compute capability {capability}{lacks})")
    return f": {', '.join(found)}" if found else ""


def _version(module: str) -> str | None:
    """Of an installed module; a JetPack's TensorRT may be there without package metadata."""
    try:
        if importlib.util.find_spec(module) is None:
            return None
    except ImportError:  # the parent package is missing
        return None
    names = {"tensorrt_rtx": "tensorrt_rtx_cu13", "cuda.bindings": "cuda-bindings"}
    return installed_version(names.get(module, module)) or "installed, version unknown"
