"""`svit-deploy bench`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svit_deploy.bench.settings import BenchSettings
from svit_deploy.commands.common import (
    DryRunFlag,
    Invocation,
    Json,
    check_json,
    dated,
    write_json,
)
from svit_deploy.commands.completion import complete_bundle
from svit_deploy.commands.parameters import with_options


@with_options(BenchSettings)
def bench(
    context: typer.Context,
    targets: Annotated[
        list[Path],
        typer.Argument(
            metavar="TARGET",
            help="Bundles, .onnx or .engine files.",
            autocompletion=complete_bundle,
        ),
    ],
    settings: BenchSettings,
    json_file: Json = None,
    dry_run: DryRunFlag = False,
) -> None:
    """Measure bundles, ONNX files or engines against each other.

    Runs are interleaved in blocks, on distinct images; the first target is the baseline. The exit
    code is 7 if a limit of --fail-above or --require-stable is not met.
    """
    check_json(json_file)
    from svit_deploy import api
    from svit_deploy.bench.printing import render

    invocation: Invocation = context.obj
    with invocation.plan(dry_run, json_file) as plan, invocation.progress() as progress:
        report = api.bench(targets, settings, progress=progress, plan=plan)
    render(report, invocation.console(json_file))
    write_json(json_file, dated(report.to_dict(invocation.command)))
    report.raise_for_failures()
