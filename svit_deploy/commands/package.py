"""`svit-deploy package`"""

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
from svit_deploy.package.settings import PackageSettings


@with_options(PackageSettings)
def package(
    context: typer.Context,
    bundle: BundleFolder,
    output: OutputFolder,
    settings: PackageSettings,
    force: Force = False,
    dry_run: DryRunFlag = False,
) -> None:
    """Package a bundle for Triton, KServe or a container."""
    from svit_deploy import api

    invocation: Invocation = context.obj
    with invocation.plan(dry_run) as plan:
        api.package(bundle, output, settings, force=force, plan=plan)
    typer.echo(f"wrote {output}")
