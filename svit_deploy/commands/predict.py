"""`svit-deploy predict` and `visualize`"""

from __future__ import annotations

import typer

from svit_deploy.commands.common import BundleFolder, DryRunFlag, Invocation, OutputFolder
from svit_deploy.commands.parameters import with_options
from svit_deploy.predict.settings import PredictSettings, VisualizeSettings


@with_options(PredictSettings)
def predict(
    context: typer.Context,
    bundle: BundleFolder,
    output: OutputFolder,
    settings: PredictSettings,
    dry_run: DryRunFlag = False,
) -> None:
    """Detect objects, and draw boxes, masks and the tokens computed."""
    from svit_deploy import api

    invocation: Invocation = context.obj
    with invocation.plan(dry_run) as plan, invocation.progress() as progress:
        files = api.predict(bundle, output, settings, progress=progress, plan=plan)
    typer.echo(f"wrote {len(files)} files to {output}")


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
