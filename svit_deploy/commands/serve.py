"""`svit-deploy serve`"""

from __future__ import annotations

from typing import Annotated

import typer

from svit_deploy.commands.common import DryRunFlag, Invocation
from svit_deploy.commands.completion import complete_bundle
from svit_deploy.commands.parameters import with_options
from svit_deploy.serve.settings import ServeSettings


@with_options(ServeSettings, step=False)
def serve(
    context: typer.Context,
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE...",
            help="Folders that export wrote; NAME=FOLDER gives the model another name.",
            autocompletion=complete_bundle,
        ),
    ],
    settings: ServeSettings,
    dry_run: DryRunFlag = False,
) -> None:
    """Serve bundles over REST and gRPC, with metrics and a page."""
    from svit_deploy import api

    invocation: Invocation = context.obj
    with invocation.plan(dry_run) as plan:
        api.serve(bundles, settings, plan=plan)
