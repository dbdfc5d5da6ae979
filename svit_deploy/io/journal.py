"""What is done of a long run, in a file: the same command goes on from there."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Generic, TypeVar

from svit_deploy.errors import ExportError
from svit_deploy.io.files import reading

K = TypeVar("K", int, str)
log = logging.getLogger(__name__)


class AnotherRun(ExportError):
    """What is there was done by a run of other images, another model or settings."""


class Journal(Generic[K]):
    """Rows of a run by number or name, in a file that remains if the run ends early.

    A context manager: what an earlier run of the same kind has done is there when it opens. A line
    that was cut short is dropped.

    Args:
        path: the file.
        run: what the rows depend on, JSON-able.
        noun: what a row is of, in the plural.
        stays: whether the file remains if the run ends well, too.

    Raises:
        AnotherRun: the file is of another run.
        ExportError: it cannot be written.
    """

    def __init__(
        self, path: Path, run: dict[str, Any], noun: str = "images", *, stays: bool = False
    ) -> None:
        self.path, self.run, self.noun, self.stays = path, run, noun, stays
        self._places: dict[K, int] = {}

    def __enter__(self) -> Journal[K]:
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
            log.warning(
                "%d %s are done: the same command goes on from there", len(self.done), self.noun
            )
        elif kind is not None or not self.stays:
            with suppress(OSError):
                self.path.unlink()

    @property
    def done(self) -> set[K]:
        """Numbers or names of the rows that are there."""
        return set(self._places)

    def add(self, key: K, row: dict[str, Any]) -> None:
        self._places[key] = self._file.seek(0, os.SEEK_END)
        self._file.write(_line([key, row]))
        self._file.flush()

    def __getitem__(self, key: K) -> dict[str, Any]:
        self._file.seek(self._places[key])
        row: dict[str, Any] = json.loads(self._file.readline())[1]
        return row

    def rows(self) -> Iterator[dict[str, Any]]:
        """All of them in their order, one at a time in memory."""
        for key in sorted(self._places):
            yield self[key]

    def check(self) -> int:
        """How many rows are there already; raises AnotherRun."""
        if not self.path.is_file():
            return 0
        with reading(self.path), self.path.open("rb") as file:
            return len(self._read(file)[0])

    def _take_up(self) -> None:
        """Finds the rows of an earlier run, or begins."""
        places, end = self._read(self._file)
        self._file.truncate(end)
        if places:
            self._places = places
            log.info("going on from %s: %d %s are done", self.path, len(self.done), self.noun)
        else:
            self._file.write(_line(self.run))
            self._file.flush()

    def _read(self, file: IO[bytes]) -> tuple[dict[K, int], int]:
        """Where the rows are and end; nothing without rows, whatever the file begins with."""
        file.seek(0)
        head, places = file.readline(), dict[K, int]()
        end = file.tell()
        while (line := file.readline()).endswith(b"\n"):
            places[json.loads(line)[0]] = end
            end = file.tell()
        if places and head != _line(self.run):
            raise AnotherRun(
                f"{self.path} is of another run: of other images, another model or settings",
                "give another output with -o, or remove it",
            )
        return places, end if places else 0


def _line(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"
