"""What a command says, line by line with the time, in a file beside where it is shown."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

from svit_deploy.errors import ExportError


class _Heard:
    """A stream whose whole lines are also written to a file.

    It is no terminal: nothing that is written to it is redrawn, so that a line is a line.
    """

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self._stream, self._file, self._line = stream, file, ""

    def write(self, text: str) -> int:
        written = self._stream.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            _put(self._file, line)
        return written

    def isatty(self) -> bool:
        return False

    def end(self) -> None:
        """Writes what has no end of line."""
        if self._line:
            _put(self._file, self._line)
            self._line = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def transcript(path: Path | None, title: str) -> Iterator[None]:
    """Writes what is printed in the block, and how the block ends, behind what a file has.

    Args:
        path: None for no file.
        title: the first line.

    Raises:
        ExportError: the file cannot be written.
    """
    if path is None:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8", errors="replace", newline="\n", buffering=1)
    except OSError as error:
        raise ExportError(
            f"cannot write {path} ({error.strerror or error})", "give another file with --log"
        ) from error
    with file, ExitStack() as stack:
        heard = [_Heard(stream, file) for stream in (sys.stdout, sys.stderr)]
        streams: Any = zip((redirect_stdout, redirect_stderr), heard, strict=True)
        for redirect, stream in streams:
            stack.enter_context(redirect(stream))
            stack.callback(stream.end)
        _put(file, title)
        try:
            yield
        except BaseException as error:
            told = str(error) or "ended"
            _put(file, f"{type(error).__name__}: {' '.join(told.split())}")
            raise


def _put(file: TextIO, line: str) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    file.write(f"{now} {line.rstrip()}\n")
