"""Shared by the commands: parameters, the invocation, JSON reports and logging."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from svit_deploy.progress import Progress

BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that export wrote.")]
OutputFolder = Annotated[
    Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder to write.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace existing output.")]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write a JSON report; - means standard output."),
]


@dataclass
class Invocation:
    """The command line as typed, and what it says before the command's name."""

    args: Sequence[str]
    verbose: bool = False
    quiet: bool = False
    no_progress: bool = False

    @property
    def command(self) -> list[str]:
        return ["svit-deploy", *self.args]

    def progress(self) -> AbstractContextManager[Progress]:
        from svit_deploy.progress import show_progress

        return show_progress(enabled=not (self.quiet or self.no_progress))

    def console(self, json_file: str | None = None) -> Console:
        """Standard output, or standard error when the report goes to standard output."""
        from rich.console import Console

        class PipeConsole(Console):
            def on_broken_pipe(self) -> None:  # rich would end the process with exit code 1
                raise BrokenPipeError

        return PipeConsole(stderr=json_file == "-")


def write_json(json_file: str | None, content: Mapping[str, Any]) -> None:
    """Writes what `--json` asks for, if it does."""
    if json_file is None:
        return
    # ASCII, because standard output may have any encoding.
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    if json_file == "-":
        sys.stdout.write(text)
        return
    from svit_deploy.io.files import write_file

    with write_file(Path(json_file), "--json") as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def dated(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report of a run, with the time of day behind the tool."""
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    head = {key: report[key] for key in ("schema_version", "tool")}
    return head | {"created_utc": created} | dict(report)


def check_json(json_file: str | None) -> None:
    """Refuses a file that cannot be written before the work that it is to report."""
    if json_file not in (None, "-"):
        from svit_deploy.io.files import check_writable

        check_writable(Path(json_file), "--json")


class LogHandler(logging.Handler):
    """`warning: ...` on whatever standard error is at that time: a progress bar replaces it."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "note" if record.levelno == logging.INFO else record.levelname.lower()
        try:
            sys.stderr.write(f"{level}: {' '.join(record.getMessage().split())}\n")
        except Exception:
            self.handleError(record)


def configure_logging(invocation: Invocation) -> None:
    """Sends this package's log, and others' warnings, to standard error."""
    level = logging.INFO
    if invocation.verbose:
        level = logging.DEBUG
    elif invocation.quiet:
        level = logging.WARNING
    root = logging.getLogger()
    if not any(isinstance(handler, LogHandler) for handler in root.handlers):
        root.addHandler(LogHandler())
    logging.getLogger("svit_deploy").setLevel(level)
    # Other packages' Python warnings tell a user nothing to act on.
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(
        logging.WARNING if invocation.verbose else logging.ERROR
    )


def restore_logging() -> None:
    """Undoes `configure_logging`, for a process that goes on after a command."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, LogHandler)]:
        root.removeHandler(handler)
    logging.getLogger("svit_deploy").setLevel(logging.NOTSET)
    logging.captureWarnings(False)
