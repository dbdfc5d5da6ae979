"""Processes that fuzz cases run in: a crash or a hang ends one of them, not the run."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.fuzz.oracle import End

MAX_CPU_S, MAX_SECONDS = 60.0, 600.0
"""After either a case is taken for a hang; another one that is slow is the oracle's to judge."""
PRELOADED = ["tests.fuzz.child"]


@dataclass(frozen=True)
class Case:
    """One damaged file or folder, and a command that reads it: wholly made of these three."""

    kind: str
    seed: int
    number: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.seed}-{self.number}"

    def random(self) -> random.Random:
        return random.Random(f"{self.kind}/{self.seed}/{self.number}")


class Worker:
    """Runs cases one after another, in a process that is replaced when it dies.

    Args:
        folder: where the cases get a folder each, beside `sound`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._context: Any = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._process: Any = None
        self._pipe: Connection[Any, Any] | None = None

    def run(self, case: Case) -> tuple[list[str], End]:
        """The command line of a case, and how it ended. Its folder stays."""
        if self._process is None:
            from tests.fuzz.child import serve

            self._pipe, theirs = self._context.Pipe()
            self._process = self._context.Process(
                target=serve, args=(theirs, self.folder), daemon=True
            )
            self._process.start()
            theirs.close()
        assert self._pipe is not None
        self._pipe.send(case)
        args: list[str] = []
        try:
            args = self._receive()
            return args, self._receive()
        except TimeoutError as error:
            return args, self._lost(str(error))
        except EOFError:
            return args, self._lost("")

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def _receive(self) -> Any:
        assert self._pipe is not None
        begin, used = time.monotonic(), self._processor_time()
        while not self._pipe.poll(1.0):
            seconds, cpu_s = time.monotonic() - begin, self._processor_time() - used
            if seconds > MAX_SECONDS or cpu_s > MAX_CPU_S:
                raise TimeoutError(
                    f"had not ended after {seconds:.0f} s, {cpu_s:.0f} s of the processor"
                )
        found = self._pipe.recv()
        if isinstance(found, Exception):
            raise found
        return found

    def _processor_time(self) -> float:
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it died, which the pipe tells
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _lost(self, why: str) -> End:
        process = self._process
        if not why:
            process.join()
            code = process.exitcode
            why = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        self.close()
        return End(None, err=why)
