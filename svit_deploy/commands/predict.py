"""`svit-deploy predict` and `visualize`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svit_deploy.commands.common import BundleFolder, DryRunFlag, Invocation, OutputFolder
from svit_deploy.commands.parameters import with_options
from svit_deploy.predict.settings import PredictSettings, VisualizeSettings


@with_options(PredictSettings)
def predict(
    context: typer.Context,
    bundle: BundleFolder,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="PATH", help="File or folder to write.")
    ],
    settings: PredictSettings,
    dry_run: DryRunFlag = False,
) -> None:
    """Classify images or detect objects, in files or pictures.

    Classes go to a .csv, .jsonl or .parquet file, detections to a folder of pictures, a .jsonl file
    or COCO's results. A file's run that was interrupted goes on where it was.
    """
    from svit_deploy import api

    invocation: Invocation = context.obj
    with invocation.plan(dry_run) as plan, invocation.progress() as progress:
        files = api.predict(bundle, output, settings, progress=progress, plan=plan)
    typer.echo(f"wrote {output}" if files == [output] else f"wrote {len(files)} files to {output}")


@with_options(VisualizeSettings)
def visualize(
    context: typer.Context,
    bundle: BundleFolder,
    output: OutputFolder,
    settings: VisualizeSettings,
    dry_run: DryRunFlag = False,
) -> None:
    """Draw the tokens that a bundle keeps over each image."""
    from svit_deploy import api

    invocation: Invocation = context.obj
    with invocation.plan(dry_run) as plan, invocation.progress() as progress:
        files = api.visualize(bundle, output, settings, progress=progress, plan=plan)
    typer.echo(f"wrote {len(files)} files to {output}")
