"""`svit-deploy evaluate`"""

from __future__ import annotations

import typer

from svit_deploy.commands.common import (
    BundleFolder,
    DryRunFlag,
    Format,
    Html,
    Invocation,
    Json,
    check_reports,
    dated,
    write_html,
)
from svit_deploy.commands.parameters import with_options
from svit_deploy.evaluate.settings import EvaluateSettings


@with_options(EvaluateSettings)
def evaluate(
    context: typer.Context,
    bundle: BundleFolder,
    settings: EvaluateSettings,
    format: Format = "table",
    json_file: Json = None,
    html_file: Html = None,
    dry_run: DryRunFlag = False,
) -> None:
    """Report accuracy or average precision on labelled images.

    Figures have 95 % intervals; beside them stand the keep ratios of the gates and images/s.
    """
    check_reports(json_file, html_file, format)
    from svit_deploy import api
    from svit_deploy.evaluate.printing import printed
    from svit_deploy.pages.evaluate import evaluate_page

    invocation: Invocation = context.obj
    with invocation.plan(dry_run, json_file, html_file) as plan, invocation.progress() as progress:
        evaluation = api.evaluate(bundle, settings, progress=progress, plan=plan)
    report = dated(evaluation.to_dict(invocation.command))
    invocation.show(printed(evaluation), format, report, json_file)
    write_html(html_file, lambda: evaluate_page(report))
