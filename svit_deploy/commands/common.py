"""Shared by the commands: parameters, the invocation, JSON reports and logging."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svit_deploy import __version__
from svit_deploy.commands.completion import complete_bundle, one_of
from svit_deploy.io.text import sentence
from svit_deploy.plan import RUN, DryRun, Plan

if TYPE_CHECKING:
    from rich.console import Console

    from svit_deploy.forms import Printed
    from svit_deploy.progress import Progress

BundleFolder = Annotated[
    Path,
    typer.Argument(
        metavar="BUNDLE", help="Folder that export wrote.", autocompletion=complete_bundle
    ),
]
OutputFolder = Annotated[
    Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder to write.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace existing output.")]
DryRunFlag = Annotated[
    bool,
    typer.Option("--dry-run", help="Show what would be done and what is missing; write nothing."),
]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write a JSON report; - means standard output."),
]


def _formats() -> Iterable[str]:
    from svit_deploy.forms import FORMATS

    return FORMATS


Format = Annotated[
    str,
    typer.Option(
        metavar="FORMAT",
        help="Form of what is printed: table, markdown, csv, json.",
        autocompletion=one_of(_formats),
    ),
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html", metavar="FILE", help="Write the report as a page that opens in any browser."
    ),
]


@dataclass
class Invocation:
    """The command line as typed, and what it says before the command's name.

    Attributes:
        saved: the file of --save-config and what belongs into it.
    """

    args: Sequence[str]
    verbose: bool = False
    quiet: bool = False
    no_progress: bool = False
    saved: tuple[Path, str] | None = None

    @property
    def command(self) -> list[str]:
        return ["svit-deploy", *self.args]

    def progress(self) -> AbstractContextManager[Progress]:
        from svit_deploy.progress import show_progress

        return show_progress(enabled=not (self.quiet or self.no_progress))

    def save(self, file: Path, context: typer.Context) -> None:
        """Takes what --save-config asks for, for `plan` to write.

        Raises:
            UsageError: the file cannot be written.
        """
        from svit_deploy.commands.pipeline import saved
        from svit_deploy.io.files import check_writable

        check_writable(file, "--save-config")
        self.saved = file, saved(context)

    def console(self, json_file: str | None = None) -> Console:
        """Standard output, or standard error when the report goes to standard output."""
        from svit_deploy.commands.console import make_console

        return make_console(stderr=json_file == "-")

    def show(
        self, report: Printed, form: str, record: Mapping[str, Any], json_file: str | None
    ) -> None:
        """Prints a report in the form of --format, and writes what --json asks for.

        Args:
            record: the report as JSON.
        """
        from svit_deploy.forms import JSON, render

        render(report, form, self.console(json_file))
        write_json(json_file, record)
        if form == JSON and json_file != "-":
            write_json("-", record)

    @contextmanager
    def plan(
        self, dry_run: bool, json_file: str | None = None, html_file: Path | None = None
    ) -> Iterator[Plan]:
        """What the command's run tells its plan; a dry run shows it, and ends the command.

        Raises:
            typer.Exit: after a dry run of what could run.
            SvitDeployError: after a dry run, what the run would end with.
        """
        if not dry_run:
            if self.saved is not None:
                write_text(*self.saved, "--save-config")
            yield RUN
            return
        with DryRun() as plan:
            if self.saved is not None:
                plan.writes(self.saved[0])
            if json_file not in (None, "-"):
                plan.writes(Path(json_file))
            if html_file is not None:
                plan.writes(html_file)
            yield plan
        if json_file == "-":
            tool = {"schema_version": 1, "tool": {"name": "svit-deploy", "version": __version__}}
            write_json(json_file, dated({**tool, "command": self.command, **plan.to_dict()}))
        else:
            for label, text in plan_lines(plan):
                typer.echo(line(label, text))
        if plan.missing:
            raise plan.missing[0]
        raise typer.Exit


def line(label: str, text: str) -> str:
    """A line of a summary."""
    return f"{label:11} {text}"


def plan_lines(plan: DryRun) -> Iterator[tuple[str, str]]:
    """Label and text of the lines that show a dry run."""
    yield from plan.lines
    for path in plan.files:
        yield "writes", str(path)
    for error in plan.missing:
        yield "missing", str(error)
    code = plan.exit_code
    yield (
        "dry run",
        f"would end with exit code {code}" if code else "would run; nothing was written",
    )


def write_json(json_file: str | None, content: Mapping[str, Any]) -> None:
    """Writes what `--json` asks for, if it does."""
    if json_file is None:
        return
    # ASCII, because standard output may have any encoding.
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    if json_file == "-":
        sys.stdout.write(text)
        return
    write_text(Path(json_file), text, "--json")


def write_html(html_file: Path | None, page: Callable[[], str], option: str = "--html") -> None:
    """Writes the page that an option asks for, if it does."""
    if html_file is not None:
        write_text(html_file, page(), option)


def write_text(file: Path, text: str, option: str) -> None:
    """Writes a file whole, as UTF-8 with LF."""
    from svit_deploy.io.files import write_file

    with write_file(file, option) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def dated(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report of a run, with the time of day behind the tool."""
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    head = {key: report[key] for key in ("schema_version", "tool")}
    return head | {"created_utc": created} | dict(report)


def check_reports(
    json_file: str | None, html_file: Path | None = None, form: str | None = None
) -> None:
    """Refuses a file that cannot be written, or no form, before the work that it is to report."""
    from svit_deploy.forms import check_format
    from svit_deploy.io.files import check_writable

    if form is not None:
        check_format(form)

    if json_file not in (None, "-"):
        check_writable(Path(json_file), "--json")
    if html_file is not None:
        check_writable(html_file, "--html")


class LogHandler(logging.Handler):
    """`warning: ...` on whatever standard error is at that time: a progress bar replaces it."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "note" if record.levelno == logging.INFO else record.levelname.lower()
        try:
            sys.stderr.write(f"{level}: {sentence(record.getMessage())}\n")
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
