"""`svit-deploy tune`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svit_deploy.commands.common import (
    DryRunFlag,
    Force,
    Format,
    Html,
    Invocation,
    Json,
    OutputFolder,
    check_reports,
    dated,
    line,
    write_html,
)
from svit_deploy.commands.parameters import with_options
from svit_deploy.tune.settings import TuneSettings


@with_options(TuneSettings)
def tune(
    context: typer.Context,
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Weights (.pth, .safetensors, hf://OWNER/NAME/FILE or timm:NAME).",
        ),
    ],
    output: OutputFolder,
    settings: TuneSettings,
    format: Format = "table",
    json_file: Json = None,
    html_file: Html = None,
    force: Force = False,
    dry_run: DryRunFlag = False,
) -> None:
    """Choose token mode, precision and engine by measurement.

    Exports what makes sense on this machine, verifies, evaluates and benches it, and writes the
    best. The exit code is 7 if nothing holds the limits. The same command goes on with a run that
    ended early.
    """
    check_reports(json_file, html_file, format)
    from svit_deploy import api
    from svit_deploy.forms import TABLE
    from svit_deploy.pages.tune import tune_page
    from svit_deploy.tune.printing import printed

    invocation: Invocation = context.obj
    with invocation.plan(dry_run, json_file, html_file) as plan, invocation.progress() as progress:
        report = api.tune(checkpoint, output, settings, force=force, progress=progress, plan=plan)
    record = dated(report.to_dict(invocation.command))
    invocation.show(printed(record), format, record, json_file)
    write_html(html_file, lambda: tune_page(record))
    report.raise_for_failures()
    if format == TABLE:
        console = invocation.console(json_file)
        for label, text in [("wrote", str(output)), *(("again", c) for c in report.commands)]:
            console.print(line(label, text), markup=False, highlight=False, soft_wrap=True)
