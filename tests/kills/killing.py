"""Runs a command in a process of its own and ends it at a chosen moment."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.kills.commands import WRITINGS, Writing

STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir",
         "shutil.rmtree", "os.chmod", "os.truncate")  # fmt: skip
"""What a process does to a folder, one step at a time."""
MAX_SECONDS = 300.0
Content = dict[str, bytes]


@dataclass(frozen=True)
class Moment:
    """When a signal comes: some seconds after the start, or in front of the n-th step."""

    seconds: float | None = None
    step: int | None = None


@dataclass(frozen=True)
class Life:
    """How a run ended; `steps` are the seconds at which it did each of them."""

    code: int
    err: str
    seconds: float
    steps: tuple[float, ...] = ()


class Killer:
    """Forks runs off a process that has imported what they need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._context: Any = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.fuzz.child"])

    def run(
        self, folder: Path, name: str, args: Sequence[Any], moment: Moment | None, number: int = 0
    ) -> Life:
        """Runs a command line in a folder; sends it a signal at the moment, if one is given."""
        ours, theirs = self._context.Pipe()
        own = number if moment and moment.step is not None else 0
        step = moment.step if moment else None
        words = [str(arg) for arg in args]
        log = self.folder / "log"
        process = self._context.Process(
            target=_live, args=(folder, name, words, step, own, theirs, log)
        )
        process.start()
        theirs.close()
        ours.recv()
        start = time.monotonic()
        if moment is not None and moment.seconds is not None:
            process.join(moment.seconds)
            if process.is_alive():
                os.kill(process.pid, number)
        process.join(MAX_SECONDS)
        seconds = time.monotonic() - start
        if process.is_alive():
            process.kill()
            process.join()
            raise RuntimeError(f"{name} did not end within {MAX_SECONDS:.0f} s")
        steps: Sequence[float] = ()
        with suppress(EOFError):  # it was killed
            steps = ours.recv()
        return Life(process.exitcode, log.read_text(errors="replace"), seconds, tuple(steps))


def _live(
    folder: Path,
    name: str,
    args: list[str],
    step: int | None,
    number: int,
    pipe: Connection[Any, Any],
    log: Path,
) -> None:
    """The life of a run; its exit code is the command's, as of any program."""
    from svit_deploy.cli import main

    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    WRITINGS[name].prepare()
    steps: list[float] = []
    pipe.send(None)
    start = time.monotonic()

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in STEPS or (event == "open" and not _is_written(arguments)):
            return
        steps.append(time.monotonic() - start)
        if len(steps) - 1 == step:
            os.kill(os.getpid(), number)

    sys.addaudithook(count)
    code = main(["--no-progress", *args])
    sys.stderr.flush()
    taken = list(steps)
    try:
        pipe.send(taken)
    finally:
        os._exit(code)


def _is_written(arguments: tuple[Any, ...]) -> bool:
    flags = arguments[2] if isinstance(arguments[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or arguments[1] in ("wb", "w")


def output_of(args: Sequence[Any]) -> str:
    flags = ("-o", "--json", "--sweep-tokens")
    return str(next((args[args.index(flag) + 1] for flag in flags if flag in args), "out"))


def content(path: Path) -> Content | None:
    """The files of a folder, or of a file; None where there is nothing."""
    if not path.exists():
        return None
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def litter(folder: Path, output: str, writing: Writing) -> list[str]:
    """What nobody asked for, and a journal."""
    wanted = {output, *writing.others}
    found = [entry.name for entry in folder.iterdir() if entry.name not in wanted]
    hidden = (entry for entry in folder.rglob(".*") if entry.parent != folder)
    return sorted([*found, *(entry.relative_to(folder).as_posix() for entry in hidden)])


def state(folder: Path, output: str, old: Content | None, writing: Writing) -> str:
    """`nothing`, `old` or `new`; anything else is what is wrong."""
    found = content(folder / output)
    if found is None:
        return "nothing" if old is None else "lost: what was there is gone"
    if found == old:
        return "old"
    try:
        writing.whole(folder / output)
    except Exception as error:
        return f"half written: {type(error).__name__}: {error}"
    return "new"


def moments(rng: random.Random, undisturbed: Life) -> Moment:
    """A moment of a run: half of the time in front of a step that writes, else mostly near one."""
    steps, end = undisturbed.steps, undisturbed.seconds
    if steps and rng.random() < 0.5:
        return Moment(step=rng.randrange(len(steps)))
    start = steps[0] if steps and rng.random() < 0.7 else 0.0
    return Moment(seconds=rng.uniform(start, end))


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
