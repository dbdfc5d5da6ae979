"""`svit-deploy debug`"""

from __future__ import annotations

import typer

from svit_deploy.commands.common import (
    BundleFolder,
    DryRunFlag,
    Force,
    Invocation,
    OutputFolder,
)
from svit_deploy.commands.parameters import with_options
from svit_deploy.debug.settings import DebugSettings


@with_options(DebugSettings)
def debug(
    context: typer.Context,
    bundle: BundleFolder,
    output: OutputFolder,
    settings: DebugSettings,
    force: Force = False,
    dry_run: DryRunFlag = False,
) -> None:
    """Prepare the search for the node that goes wrong.

    Writes what Polygraphy needs: the graph up to the first stage that verify finds wrong, inputs,
    what should come out, and a README.md with the commands to go on with.
    """
    from svit_deploy import api
    from svit_deploy.debug.readme import README

    invocation: Invocation = context.obj
    with invocation.plan(dry_run) as plan, invocation.progress() as progress:
        written = api.debug(bundle, output, settings, force=force, progress=progress, plan=plan)
    typer.echo(f"{written.verdict}; wrote {output}, {output / README} has the commands")
