"""What the commands share: options, the reading of their values, and the ways out."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svit_deploy.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from svit_deploy.progress import Progress

Checkpoint = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="Weights: .pth or .safetensors.")
]
Arch = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|YAML",
        help="What the weights cannot tell: svit_s, deit_small, ... or a file. "
        "By default recognised by the sizes.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One field of --arch; may be repeated."),
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Run code out of the checkpoint. Dangerous.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write a report; - is stdout.")
]
Images = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Folder, picture or .npz (images [n, H, W, 3] uint8)."),
]
MaxImages = Annotated[int, typer.Option(metavar="N", min=1, help="Take only the first N images.")]
Provider = Annotated[
    str, typer.Option(metavar="NAME", help="ONNX Runtime provider: cpu, cuda, tensorrt, ...")
]
EngineOrProvider = Annotated[
    str | None,
    typer.Option(
        "--provider",
        metavar="NAME",
        help="ONNX Runtime provider: cpu, cuda, tensorrt, ... By default a bundle's TensorRT "
        "engine runs if it has one, else cpu.",
    ),
]
AllowForeign = Annotated[
    bool,
    typer.Option(
        "--allow-foreign-engine", help="Run an engine without its sidecar: native code. Dangerous."
    ),
]
Threads = Annotated[
    int, typer.Option(metavar="N", min=0, max=1024, help="Per operator; 0 is one per core.")
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
    from svit_deploy.files import write_file

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
        from svit_deploy.files import check_writable

        check_writable(Path(json_file), "--json")


def parse_overrides(pairs: Sequence[str] | None) -> dict[str, str]:
    """`--set KEY=VALUE ...`"""
    parsed = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair!r} is not KEY=VALUE", "write, e.g., --set num_heads=6")
        parsed[key.strip()] = value
    return parsed


def parse_whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """`1,8`"""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} {text!r} is not a list of whole numbers", f"write, e.g., {option} 1,8"
        ) from None


def parse_seconds(text: str, option: str) -> float:
    """`5`, `5s` or `500ms`"""
    number, scale = text.strip(), 1.0
    if number.endswith("ms"):
        number, scale = number.removesuffix("ms"), 1e-3
    elif number.endswith("s"):
        number = number.removesuffix("s")
    try:
        seconds = float(number) * scale
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise UsageError(f"{option} {text!r} is no duration", f"write, e.g., {option} 5s or 500ms")
    return seconds


def parse_limits(pairs: Sequence[str] | None) -> dict[str, float]:
    """`--fail-above NAME=MILLISECONDS ...`"""
    limits = {}
    for pair in pairs or []:
        name, _, value = pair.partition("=")
        try:
            limits[name] = float(value.removesuffix("ms"))
        except ValueError:
            limits[name] = math.nan
        if not math.isfinite(limits[name]):
            raise UsageError(
                f"--fail-above {pair!r} is not NAME=MILLISECONDS",
                "write, e.g., --fail-above p99=12",
            )
    return limits


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
