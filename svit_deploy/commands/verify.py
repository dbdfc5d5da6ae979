"""`svit-deploy verify`"""

from __future__ import annotations

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
from svit_deploy.commands.parameters import with_options
from svit_deploy.errors import VerificationFailed
from svit_deploy.verify.settings import VerifySettings


@with_options(VerifySettings)
def verify(
    context: typer.Context,
    bundle: BundleFolder,
    settings: VerifySettings,
    json_file: Json = None,
    html_file: Html = None,
    dry_run: DryRunFlag = False,
) -> None:
    """Compare a bundle with its reference, gate by gate.

    The exit code is 6 if they disagree.
    """
    check_reports(json_file, html_file)
    from svit_deploy import api
    from svit_deploy.pages.verify import verify_page

    invocation: Invocation = context.obj
    with invocation.plan(dry_run, json_file, html_file) as plan, invocation.progress() as progress:
        report = api.verify(bundle, settings, progress=progress, plan=plan)
    report.render(invocation.console(json_file))
    record = dated(report.to_dict(invocation.command))
    write_json(json_file, record)
    write_html(html_file, lambda: verify_page(record, report.maps()))
    if not report.passed:
        raise VerificationFailed(report.verdict.removeprefix("FAIL "), "do not ship this bundle")
