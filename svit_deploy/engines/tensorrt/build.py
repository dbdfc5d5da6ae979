"""Building a TensorRT engine from an exported graph, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from svit_deploy import errors
from svit_deploy.engines.tensorrt.channel import ERROR, LOG, PROGRESS, RESULT
from svit_deploy.engines.tensorrt.rtx import link_libraries
from svit_deploy.engines.tensorrt.settings import BuildSettings
from svit_deploy.engines.tensorrt.sidecar import Sidecar, read_sidecar, sidecar_path
from svit_deploy.errors import ExportError
from svit_deploy.io.onnx_file import load_onnx
from svit_deploy.machine.tensorrt import NAMES, RTX, require_library
from svit_deploy.progress import SILENT, Progress

WORKER = "svit_deploy.engines.tensorrt.worker"

log = logging.getLogger(__name__)


def require_builder(target: str, device: int = 0, precision: str = "fp32") -> None:
    """Starts a build process that looks around and ends; call it before a long run.

    Raises:
        CapabilityError: the library is missing, broken or too old, or there is no GPU to build on,
            none that has products of the precision.
    """
    require_library(target)
    with tempfile.TemporaryDirectory() as scratch:
        settings = BuildSettings(target, (), precision, "", device=device)
        _run_worker((), Path(scratch), settings, SILENT)


def build_engine(
    onnx: Path, folder: Path, settings: BuildSettings, progress: Progress = SILENT
) -> Sidecar:
    """Builds an engine and writes it with its sidecar, or nothing.

    Args:
        onnx: the graph.
        folder: where `model.<precision>-<library>-<sm>.engine` and its `.json` go; what has these
            names is replaced.

    Raises:
        SvitDeployError: InputError for a bad graph, CapabilityError for what this machine lacks,
            UsageError for profiles that do not fit, ExportError for all that TensorRT refuses.
    """
    load_onnx(onnx)
    try:
        with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as name:
            scratch = Path(name).absolute()
            files = (onnx.absolute(), scratch)
            engine = scratch / _run_worker(files, scratch, settings, progress)
            sidecar = read_sidecar(engine)
            for file in (engine, sidecar_path(engine)):  # an engine without sidecar is not loaded
                file.replace(folder / file.name)
            return sidecar
    except OSError as error:
        raise ExportError(
            f"cannot write to {folder} ({error.strerror or error})",
            "give a folder you may write to, on a disk with room, with -o",
        ) from error


def _run_worker(
    files: Sequence[Path], scratch: Path, settings: BuildSettings, progress: Progress
) -> str:
    """Runs the build process to its end, and ends it if we are interrupted.

    Its working folder is the scratch folder, for Python would import from the user's.

    Args:
        files: the graph, and the folder to write to; none to look around only.

    Returns:
        The name of the engine it wrote.
    """
    answer: dict[str, Any] = {}
    tail: deque[str] = deque(maxlen=20)
    with (scratch / "log").open("w+b") as printed:
        process = _start(files, scratch, settings, printed)
        assert process.stdin and process.stdout
        try:
            with contextlib.suppress(BrokenPipeError):  # it died at once: its exit code tells
                process.stdin.write(settings.to_json().encode())
                process.stdin.close()
            for line in process.stdout:
                if line.endswith(b"\n"):  # else it was killed while it wrote
                    answer |= _take(line, progress, tail)
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        printed.seek(0)
        tail.extend(printed.read().decode(errors="replace").splitlines()[-20:])
    if RESULT in answer:
        return str(answer[RESULT])
    if ERROR in answer:
        kind, message, fix = answer[ERROR]
        raise getattr(errors, kind)(message, fix)
    raise _crash(settings, code, [line.strip() for line in tail if line.strip()])


def _start(
    files: Sequence[Path], scratch: Path, settings: BuildSettings, printed: IO[bytes]
) -> subprocess.Popen[bytes]:
    environment = _environment(settings, scratch)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", WORKER, *files],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            cwd=scratch,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us alone
        )
    except OSError as error:
        raise ExportError(
            f"the build process cannot be started ({error.strerror or error})",
            "free some memory and run again",
        ) from error


def _take(line: bytes, progress: Progress, tail: deque[str]) -> dict[str, Any]:
    """Handles a line of the channel; returns it if it is an answer."""
    ((kind, content),) = json.loads(line).items()
    if kind == PROGRESS:
        progress.update(*content)
    elif kind == LOG:
        level, message = content
        log.log(level, "%s", message)
        tail.append(message)
    else:
        return {kind: content}
    return {}


def _crash(settings: BuildSettings, code: int, tail: list[str]) -> Exception:
    """What to say of a process that ended without an answer."""
    if code >= 0:
        return RuntimeError("the build process failed:\n" + "\n".join(tail))
    name = signal.Signals(-code).name
    if name == "SIGKILL":
        return ExportError(
            "the build was killed, probably for want of memory",
            "lower --workspace or the largest --batch",
        )
    last = f"; its last words: {' | '.join(tail[-3:])[:400]}" if tail else ""
    return ExportError(
        f"{NAMES[settings.target]} crashed while building ({name}){last}",
        "try --tokens budget, another --precision, or another release of it",
    )


def _environment(settings: BuildSettings, scratch: Path) -> dict[str, str]:
    """Ours, with the packages that we see and the one GPU to build on."""
    environment = dict(os.environ)
    here = [str(Path(folder).absolute()) for folder in sys.path]
    environment["PYTHONPATH"] = os.pathsep.join(here)
    if settings.device:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        numbers = visible.split(",") if visible is not None else []
        known = settings.device < len(numbers)
        environment["CUDA_VISIBLE_DEVICES"] = (
            numbers[settings.device] if known else str(settings.device)
        )
    if settings.target == RTX:
        links = link_libraries(scratch / "links")
        paths = [str(links), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(paths)
    return environment
