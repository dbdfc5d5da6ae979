"""`svit-deploy evaluate`"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from svit_deploy.commands.common import (
    BundleFolder,
    DryRunFlag,
    Html,
    Invocation,
    Json,
    check_reports,
    dated,
    write_html,
    write_json,
)
from svit_deploy.commands.completion import one_of
from svit_deploy.commands.parameters import with_options
from svit_deploy.errors import UsageError
from svit_deploy.evaluate.settings import EvaluateSettings


def _formats() -> Iterable[str]:
    from svit_deploy.evaluate.printing import FORMATS

    return FORMATS


@with_options(EvaluateSettings)
def evaluate(
    context: typer.Context,
    bundle: BundleFolder,
    settings: EvaluateSettings,
    format: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="Form of what is printed: table, markdown, csv, json.",
            autocompletion=one_of(_formats),
        ),
    ] = "table",
    json_file: Json = None,
    html_file: Html = None,
    dry_run: DryRunFlag = False,
) -> None:
    """Report accuracy or average precision on labelled images.

    Figures have 95 % intervals; beside them stand the keep ratios of the gates and images/s.
    """
    from svit_deploy.evaluate import printing

    if format not in printing.FORMATS:
        raise UsageError(f"--format {format!r} is unknown", f"use {', '.join(printing.FORMATS)}")
    check_reports(json_file, html_file)
    from svit_deploy import api
    from svit_deploy.pages.evaluate import evaluate_page

    invocation: Invocation = context.obj
    with invocation.plan(dry_run, json_file, html_file) as plan, invocation.progress() as progress:
        evaluation = api.evaluate(bundle, settings, progress=progress, plan=plan)
    report = dated(evaluation.to_dict(invocation.command))
    printing.render(evaluation, format, invocation.console(json_file))
    write_json(json_file, report)
    write_html(html_file, lambda: evaluate_page(report))
    if format == printing.JSON and json_file != "-":
        write_json("-", report)
