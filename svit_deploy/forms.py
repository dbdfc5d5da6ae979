"""Forms in which a report is printed: tables for the terminal, Markdown, CSV, and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from svit_deploy.errors import UsageError

TABLE, MARKDOWN, CSV, JSON = FORMATS = ("table", "markdown", "csv", "json")


@dataclass(frozen=True)
class Part:
    """A part of a report for the eye: a table and the sentences below it; either may be missing.

    Attributes:
        caption: above the table.
        headings: of the columns; all but the first are of figures.
    """

    caption: str = ""
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Printed:
    """A report in all the forms but JSON, which is the report itself.

    Attributes:
        columns: of the CSV.
        figures: its rows, in full.
    """

    parts: Sequence[Part]
    columns: Sequence[str]
    figures: Sequence[Sequence[str | float | None]]


def check_format(form: str) -> None:
    """Raises UsageError for a form that there is not."""
    if form not in FORMATS:
        raise UsageError(f"--format {form!r} is unknown", f"use {', '.join(FORMATS)}")


def render(report: Printed, form: str, console: Console) -> None:
    """Prints one of the forms; nothing for JSON."""
    if form == TABLE:
        for part in report.parts:
            _print(part, console)
    elif form == MARKDOWN:
        _write("\n\n".join(filter(None, map(_to_markdown, report.parts))), console)
    elif form == CSV:
        _write(_to_csv(report), console)


def _print(part: Part, console: Console) -> None:
    if part.caption:
        console.print(part.caption, markup=False, highlight=False, style="italic")
    if part.headings:
        table = Table(box=None, pad_edge=False)
        for place, heading in enumerate(part.headings):
            table.add_column(heading, overflow="fold", justify="right" if place else "left")
        for row in part.rows:
            table.add_row(*map(Text, row))
        console.print(table)
    for line in part.lines:
        console.print(line, markup=False, highlight=False)


def _to_markdown(part: Part) -> str:
    blocks = [_escaped(part.caption)] if part.caption else []
    if part.headings:
        rule = ["---", *["---:"] * (len(part.headings) - 1)]
        rows = ([_escaped(cell) for cell in row] for row in (part.headings, *part.rows))
        head, *body = rows
        blocks.append("\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body)))
    if part.lines:
        blocks.append("\n".join(f"- {_escaped(line)}" for line in part.lines))
    return "\n\n".join(blocks)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _to_csv(report: Printed) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(report.columns)
    writer.writerows(report.figures)
    return text.getvalue().rstrip("\n")


def _write(text: str, console: Console) -> None:
    """Prints a text as it stands."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
