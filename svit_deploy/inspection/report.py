"""The result of an inspection: a record for JSON, and tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from svit_deploy import __version__
from svit_deploy.io.text import printable

SCHEMA_VERSION = 1
MAX_CELL = 1500
"""Characters of a cell on a terminal."""


@dataclass(frozen=True)
class Section:
    """A table; without headings it is a list of names and values."""

    rows: tuple[tuple[str, ...], ...]
    headings: tuple[str, ...] = ()

    def table(self, console: Console) -> Table:
        table = Table(box=None, pad_edge=False, show_header=bool(self.headings))
        for heading in self.headings or ("name", "value"):
            table.add_column(heading, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(fitting(cell, console)) for cell in row))
        return table


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        kind: what the file is.
        name: its name, without the folders above.
        facts: JSON-able.
        sections: the same for the eye.
        notes: sentences, in both.
    """

    kind: Literal["checkpoint", "bundle", "onnx"]
    name: str
    facts: dict[str, Any]
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able record; sizes in bytes."""
        return {
            "schema_version": SCHEMA_VERSION,
            "tool": {"name": "svit-deploy", "version": __version__},
            "kind": self.kind,
            "name": self.name,
            **self.facts,
            "notes": list(self.notes),
        }

    def render(self, console: Console) -> None:
        """Prints the sections and notes; fits 80 columns and any console's characters."""
        lines = [f"{self.kind} {self.name}", *(f"note: {note}" for note in self.notes)]
        title, *notes = (Text(fitting(line, console)) for line in lines)
        console.print(title, style="bold")
        for section in self.sections:
            console.print()
            console.print(section.table(console))
        for note in notes:
            console.print(note)


def fitting(text: str, console: Console) -> str:
    """Text out of a file: without control characters, encodable, and on a terminal cut."""
    if len(text) > MAX_CELL and console.file.isatty():
        text = f"{text[: MAX_CELL - 3]}..."
    return printable(text).encode(console.encoding, errors="replace").decode(console.encoding)


def listed(values: Sequence[Any] | None) -> str:
    """`3, 4, 5`, or `-` for nothing."""
    return ", ".join(_plain(value) for value in values) if values else "-"


def number(value: float | None) -> str:
    """A short decimal, or `-` for nothing."""
    return "-" if value is None else f"{value:.4g}"


def mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.2f} MiB"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
