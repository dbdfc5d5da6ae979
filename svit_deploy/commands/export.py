"""`svit-deploy export`"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from svit_deploy.commands.common import DryRunFlag, Force, Invocation, OutputFolder, line
from svit_deploy.commands.parameters import with_options
from svit_deploy.export.settings import ExportSettings

log = logging.getLogger(__name__)


@with_options(ExportSettings)
def export(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Weights (.pth, .safetensors, hf://OWNER/NAME/FILE or timm:NAME), or a bundle.",
        ),
    ],
    output: OutputFolder,
    settings: ExportSettings,
    force: Force = False,
    dry_run: DryRunFlag = False,
) -> None:
    """Export a checkpoint to an ONNX model, or a TensorRT engine.

    Given a bundle instead of a checkpoint, build an engine of it on this machine.
    """
    from svit_deploy import api
    from svit_deploy.commands.summary import next_steps, summary
    from svit_deploy.export.outline import assumed_line

    invocation: Invocation = context.obj
    with invocation.plan(dry_run) as plan, invocation.progress() as progress:
        bundle = api.export(
            source,
            output,
            settings,
            force=force,
            command=invocation.command,
            progress=progress,
            plan=plan,
        )
    if invocation.quiet:
        typer.echo(str(bundle.path))
        for _, assumed in assumed_line(bundle.assumed):
            log.warning("assumed %s", assumed)
        return
    for label, text in [*summary(bundle), *next_steps(source, output, settings)]:
        typer.echo(line(label, text))
