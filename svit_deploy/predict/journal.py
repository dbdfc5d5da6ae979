"""What is done of a long run, beside its output: the same command goes on from there."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from svit_deploy.errors import ExportError

log = logging.getLogger(__name__)


class Journal:
    """Rows of a run by their number, in a file `OUTPUT.partial` that remains if the run ends early.

    A context manager: what an earlier run of the same kind has done is there when it opens. A line
    that was cut short is dropped.

    Args:
        output: what the rows are for.
        run: what the rows depend on, JSON-able.

    Raises:
        ExportError: the file is of another run, or cannot be written.
    """

    def __init__(self, output: Path, run: dict[str, Any]) -> None:
        self.path = output.with_name(f"{output.name}.partial")
        self.run = run
        self._places: dict[int, int] = {}

    def __enter__(self) -> Journal:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = self.path.open("a+b")
        except OSError as error:
            raise ExportError(
                f"cannot write {self.path} ({error.strerror or error})",
                "give a place that you may write to with -o",
            ) from error
        try:
            self._take_up()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is not None and self._places:
            log.warning("%d images are done: the same command goes on from there", len(self.done))
            return
        with suppress(OSError):
            self.path.unlink()

    @property
    def done(self) -> set[int]:
        """Numbers of the rows that are there."""
        return set(self._places)

    def add(self, number: int, row: dict[str, Any]) -> None:
        self._places[number] = self._file.seek(0, os.SEEK_END)
        self._file.write(_line([number, row]))
        self._file.flush()

    def rows(self) -> Iterator[dict[str, Any]]:
        """All of them in the order of their numbers, one at a time in memory."""
        for _, place in sorted(self._places.items()):
            self._file.seek(place)
            yield json.loads(self._file.readline())[1]

    def _take_up(self) -> None:
        """Finds the rows of an earlier run, or begins."""
        self._file.seek(0)
        head, places = self._file.readline(), {}
        end = self._file.tell()
        while (line := self._file.readline()).endswith(b"\n"):
            places[json.loads(line)[0]] = end
            end = self._file.tell()
        if not places:  # whatever it began with
            self._file.truncate(0)
            self._file.write(_line(self.run))
            self._file.flush()
            return
        if head != _line(self.run):
            raise ExportError(
                f"{self.path} is of another run: of other images, another model or settings",
                "give another output with -o, or remove it",
            )
        self._file.truncate(end)
        self._places = places
        log.info("going on from %s: %d images are done", self.path, len(self.done))


def _line(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"
