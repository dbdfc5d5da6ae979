"""`svit-deploy verify`"""

from __future__ import annotations

import typer

from svit_deploy.commands.common import (
    BundleFolder,
    DryRunFlag,
    Invocation,
    Json,
    check_json,
    dated,
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
    dry_run: DryRunFlag = False,
) -> None:
    """Compare a bundle with its reference, gate by gate.

    The exit code is 6 if they disagree.
    """
    check_json(json_file)
    from svit_deploy import api

    invocation: Invocation = context.obj
    with invocation.plan(dry_run, json_file) as plan, invocation.progress() as progress:
        report = api.verify(bundle, settings, progress=progress, plan=plan)
    report.render(invocation.console(json_file))
    write_json(json_file, dated(report.to_dict(invocation.command)))
    if not report.passed:
        raise VerificationFailed(report.verdict.removeprefix("FAIL "), "do not ship this bundle")
