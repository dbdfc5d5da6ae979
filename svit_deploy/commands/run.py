"""`svit-deploy run`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svit_deploy.commands.common import DryRunFlag


def run(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="PIPELINE", help="YAML file with the steps.")],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STEP.OPTION=VALUE",
            help="Set an option of a step, for example bench.batch=8; may be repeated.",
        ),
    ] = None,
    again: Annotated[
        list[str] | None,
        typer.Option(
            "--again", metavar="STEP", help="Do a step again that is done; may be repeated."
        ),
    ] = None,
    log_file: Annotated[
        Path | None,
        typer.Option("--log", metavar="FILE", help="Add what is printed, with times, to a file."),
    ] = None,
    state_file: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="FILE",
            help="Where to note what is done; by default PIPELINE.done.",
        ),
    ] = None,
    dry_run: DryRunFlag = False,
) -> None:
    """Run export, verify, bench and others as a file says.

    Each is a command with its options. A step that is done is not done again unless its options
    or what it reads have changed. The first one that fails ends the run, with its exit code.
    """
    from svit_deploy.commands.steps import run_steps
    from svit_deploy.io.files import check_writable

    state_file = state_file or file.with_name(f"{file.name}.done")
    if not dry_run:
        check_writable(state_file, "--state")
        if log_file is not None:
            check_writable(log_file, "--log")
    run_steps(
        context, file, changes or (), again or (), state_file, log_file=log_file, dry_run=dry_run
    )
