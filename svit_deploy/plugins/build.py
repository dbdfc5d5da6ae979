"""Compiles the plugin library with the user's CMake, CUDA compiler and TensorRT headers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from svit_deploy.errors import CapabilityError, ExportError, UsageError
from svit_deploy.io.folder import check_folder, write_folder
from svit_deploy.machine.environment import usable_cores
from svit_deploy.machine.tensorrt import ENTERPRISE, OLDEST, is_too_old
from svit_deploy.plan import RUN, Plan
from svit_deploy.plugins import (
    AUTOREGISTER,
    LIBRARY,
    RECORD,
    SOURCE,
    default_folder,
    recorded_source,
    source_sha256,
)
from svit_deploy.progress import SILENT, Progress

SM = (75, 80, 86, 89, 90, 100, 120)
"""GPU generations the library is compiled for by default, as far as the compiler knows them."""
CUDA_HOME = "/usr/local/cuda"
HEADERS = ("NvInferRuntime.h", "NvInferVersion.h")
WHERE_HEADERS_ARE = (
    "give --tensorrt-include the include folder of the TensorRT SDK, of the Debian package "
    "libnvinfer-headers-dev, or of the open-source TensorRT repository at your version's tag"
)


@dataclass(frozen=True)
class Build:
    """What a library was made of and with, as recorded beside it.

    Attributes:
        source_sha256: of `plugins/source`.
        tensorrt: version of the headers, 10.9.0.34.
        sm: GPU generations it has code for; others from the first on compile it when they load it.
        nvcc: version of the CUDA compiler.
    """

    source_sha256: str
    tensorrt: str
    sm: tuple[int, ...]
    nvcc: str


def build_plugins(
    tensorrt_include: Path,
    output: Path | None = None,
    *,
    sm: Sequence[int] | None = None,
    nvcc: str | None = None,
    jobs: int = 0,
    progress: Progress = SILENT,
    plan: Plan = RUN,
) -> tuple[Path, Build]:
    """Builds both libraries into a folder that is complete or as it was before.

    Args:
        tensorrt_include: folder with NvInferRuntime.h.
        output: folder to write; `default_folder()` by default.
        sm: GPU generations, 90 for compute capability 9.0; `SM` by default.
        nvcc: the CUDA compiler; by default that of PATH, CUDA_HOME or /usr/local/cuda.
        jobs: compilers to run at a time; 0 is one per core.

    Returns:
        The path of the library, and what it was built with.

    Raises:
        CapabilityError: a tool or the headers are missing, too old, or do not know an SM.
        UsageError: `output` holds something else.
        ExportError: the compiler fails, or the folder cannot be written.
    """
    if sys.platform != "linux":
        raise CapabilityError("TensorRT plugins are built on Linux only", "build them there")
    include, folder = Path(tensorrt_include), Path(output) if output else default_folder()
    host = os.environ.get("CXX", "c++").split() or ["c++"]
    plan.needs(read_tensorrt_version, include)
    plan.needs(find_cmake)
    plan.needs(find_nvcc, nvcc)
    plan.needs(_find_tool, host[0], "install g++, or set CXX to a C++ compiler")
    plan.needs(check_folder, folder, _check_output)
    tensorrt, cmake, compiler = read_tensorrt_version(include), find_cmake(), find_nvcc(nvcc)
    known = known_sm(compiler)
    if unknown := sorted(set(sm or ()) - set(known)):
        raise CapabilityError(
            f"{compiler} cannot compile for sm {', '.join(map(str, unknown))}",
            f"choose among {','.join(map(str, known))} with --sm, or use another CUDA toolkit",
        )
    chosen = tuple(sorted(set(sm or (one for one in SM if one in known))))
    made = Build(source_sha256(), tensorrt, chosen, _nvcc_version(compiler))
    plan.tell("compiler", f"{compiler}, version {made.nvcc}, through {cmake}")
    plan.tell("TensorRT", f"headers of {tensorrt} in {include}")
    plan.tell("sm", f"{' '.join(map(str, chosen))}; takes minutes")
    plan.writes(*(folder / name for name in (LIBRARY, AUTOREGISTER, RECORD)))
    plan.begin()
    with (
        write_folder(folder, _check_output) as part,
        tempfile.TemporaryDirectory(prefix=".building-", dir=part) as temporary,
    ):
        build = Path(temporary)
        definitions = {
            "TENSORRT_INCLUDE_DIR": include.absolute(),
            "TENSORRT_MAJOR": tensorrt.partition(".")[0],
            "CMAKE_CUDA_COMPILER": compiler,
            # PTX of the oldest: a driver compiles it for any later GPU that has no code in here.
            "CMAKE_CUDA_ARCHITECTURES": ";".join(
                [f"{chosen[0]}", *(f"{n}-real" for n in chosen[1:])]
            ),
        }
        configure = [cmake, "-S", str(SOURCE), "-B", str(build)]
        configure += [f"-D{name}={value}" for name, value in definitions.items()]
        progress.update("configuring the plugin library", 0.1)
        log = _run(configure, "")
        progress.update("compiling the plugin library", 0.3)
        _run([cmake, "--build", str(build), "--parallel", str(jobs or usable_cores())], log)
        for name in (LIBRARY, AUTOREGISTER):
            shutil.copyfile(build / name, part / name)
        record = json.dumps(asdict(made), indent=2) + "\n"
        (part / RECORD).write_text(record, encoding="utf-8")
    return folder.absolute() / LIBRARY, made


def read_tensorrt_version(include: Path) -> str:
    """The version of the TensorRT headers in a folder: 10.9.0.34.

    Raises:
        CapabilityError: there are none, or they are older than this package works with.
    """
    for name in HEADERS:
        if not (include / name).is_file():
            raise CapabilityError(f"{include} has no {name}", WHERE_HEADERS_ARE)
    text = (include / "NvInferVersion.h").read_text(encoding="utf-8", errors="replace")
    found = re.findall(r"^\s*#\s*define\s+(\w+)\s+(\w+)", text, re.MULTILINE)
    values: dict[str, str] = dict(found)
    numbers: list[str] = []
    for part in ("MAJOR", "MINOR", "PATCH", "BUILD"):
        value = values.get(f"NV_TENSORRT_{part}", "")
        numbers.append(values.get(value, value))  # from 11 on it is the name of another macro
    version = ".".join(numbers)
    if not re.fullmatch(r"\d+(\.\d+){3}", version):
        raise CapabilityError(
            f"{include / 'NvInferVersion.h'} does not say its version", WHERE_HEADERS_ARE
        )
    if is_too_old(ENTERPRISE, version):
        raise CapabilityError(
            f"the headers in {include} are of TensorRT {version}, and the plugins need {OLDEST}",
            f"use TensorRT {OLDEST} or newer",
        )
    return version


def find_cmake() -> str:
    """Path of CMake: on PATH, or where pip puts it for this Python.

    Raises:
        CapabilityError: there is none.
    """
    beside = shutil.which("cmake", path=str(Path(sys.executable).parent))
    return beside or _find_tool("cmake", "run pip install 'svit-deploy[plugins]'")


def find_nvcc(given: str | None = None) -> str:
    """Path of the CUDA compiler.

    Raises:
        CapabilityError: there is none.
    """
    homes = [os.environ.get("CUDA_HOME"), CUDA_HOME]
    candidates = [given] if given else ["nvcc", *(f"{home}/bin/nvcc" for home in homes if home)]
    for candidate in candidates:
        if found := shutil.which(candidate):
            return found
    raise CapabilityError(
        f"no CUDA compiler at {given}" if given else "no CUDA compiler (nvcc) found",
        "install the CUDA toolkit, or name its nvcc with --nvcc",
    )


def known_sm(nvcc: str) -> tuple[int, ...]:
    """The GPU generations a CUDA compiler knows, oldest first.

    Raises:
        CapabilityError: it is no CUDA compiler.
    """
    found = re.findall(r"^compute_(\d+)$", _ask(nvcc, "--list-gpu-arch"), re.MULTILINE)
    if not found:
        raise CapabilityError(f"{nvcc} is no CUDA compiler", "name one with --nvcc")
    return tuple(sorted(int(number) for number in found))


def _nvcc_version(nvcc: str) -> str:
    found = re.search(r"\bV(\d+(?:\.\d+)+)", _ask(nvcc, "--version"))
    return found[1] if found else "unknown"


def _ask(nvcc: str, question: str) -> str:
    try:
        done = subprocess.run([nvcc, question], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CapabilityError(
            f"{nvcc} does not run ({error})", "name a CUDA compiler with --nvcc"
        ) from error
    return done.stdout


def _find_tool(name: str, fix: str) -> str:
    found = shutil.which(name)
    if not found:
        raise CapabilityError(f"building the plugins needs {name}, which is not on PATH", fix)
    return found


def _check_output(output: Path) -> None:
    """Lets only nothing, an empty folder, or an earlier build be replaced."""
    if not output.exists():
        return
    if not output.is_dir() or (any(output.iterdir()) and recorded_source(output) is None):
        raise UsageError(
            f"{output} exists and is no earlier build of the plugins",
            "give another folder with --output",
        )


def _run(command: list[str], log: str) -> str:
    """Runs a step of the build and returns the log with its output; a failure keeps the log."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"LC_ALL": "C"},
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # the compilers that it started, too
            raise
    log += f"$ {' '.join(command)}\n{output}"
    if process.returncode == 0:
        return log
    descriptor, name = tempfile.mkstemp(prefix="svit-deploy-plugins-", suffix=".log", text=True)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(log)
    raise ExportError(
        f"the plugins did not compile ({essence(output)})",
        f"see the whole log in {name}",
    )


def essence(output: str) -> str:
    """The first error in the output of CMake or a compiler, on one line and without its folders."""
    if "CMake Error" in output:
        text = output.partition("CMake Error")[2].partition("-- Configuring incomplete")[0]
        text = re.sub(r"^.*:\n", "", text, count=1)  # where in CMakeLists.txt
        text = re.split(r"\.\s", text)[0].lstrip(": ")
    else:
        errors = re.findall(r"^.*\b(?:error|fatal)\b.*$", output, re.MULTILINE)  # not make's Error
        text = errors[0] if errors else output.strip().rpartition("\n")[2]
    text = " ".join(re.sub(r"(?<![\w.])(?:/[^\s/:]+)+/", "", text).split())
    return text[:300]
