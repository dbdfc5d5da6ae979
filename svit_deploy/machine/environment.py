"""What a report says of the machine: enough to repeat a measurement, nothing that names anyone."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "svit-deploy",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "openvino",
    "tensorrt",
    "tensorrt_rtx_cu13",
    "cuda-bindings",
    "torch",
)
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_MODULE_LOADING",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)
_CPUINFO = Path("/proc/cpuinfo")


def describe_environment() -> dict[str, Any]:
    """Describes the machine and the installed versions, JSON-able; imports no package."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "physical_cores": physical_cores(),
        "usable_cores": usable_cores(),
        "packages": installed_versions(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def installed_versions() -> dict[str, str]:
    """Versions of the packages that matter here, by distribution name; absent ones left out."""
    return {name: version for name in PACKAGES if (version := installed_version(name))}


def installed_version(name: str) -> str | None:
    """Of a distribution, without importing it; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def release(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` -> (2, 13, 0): enough to compare; nothing if there is no number in front."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def cpu_model() -> str:
    """The processor's marketing name, or its architecture where the system does not say."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return platform.machine()
    for key in ("model name", "Model", "Hardware"):  # the last two: ARM boards
        if names := _cpuinfo(key):
            return names[0]
    return platform.processor() or platform.machine()


def physical_cores() -> int | None:
    """Cores without hyper-threads, or None where the system does not say."""
    cores = set(zip(_cpuinfo("physical id"), _cpuinfo("core id"), strict=False))
    return len(cores) or None


def usable_cores() -> int:
    """Logical cores that this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_rss_mib() -> float | None:
    """Largest resident memory of this process so far in MiB; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _cpuinfo(key: str) -> list[str]:
    """Values of `key` in /proc/cpuinfo, one for each core that has it."""
    try:
        lines = _CPUINFO.read_text(errors="replace").splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for name, _, value in pairs if name.strip() == key]
