"""`svit-deploy bench`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svit_deploy.bench.settings import BenchSettings
from svit_deploy.commands.common import (
    DryRunFlag,
    Format,
    Html,
    Invocation,
    Json,
    check_reports,
    dated,
    write_html,
)
from svit_deploy.commands.completion import complete_bundle
from svit_deploy.commands.parameters import with_options


@with_options(BenchSettings)
def bench(
    context: typer.Context,
    targets: Annotated[
        list[Path],
        typer.Argument(
            metavar="TARGET",
            help="Bundles, .onnx or .engine files.",
            autocompletion=complete_bundle,
        ),
    ],
    settings: BenchSettings,
    format: Format = "table",
    json_file: Json = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="The JSON report has the latency of every run, too.")
    ] = False,
    html_file: Html = None,
    dry_run: DryRunFlag = False,
) -> None:
    """Measure bundles, ONNX files or engines against each other.

    Runs are interleaved in blocks, on distinct images; the first target is the baseline. The exit
    code is 7 if a limit of --fail-above or --require-stable is not met.
    """
    check_reports(json_file, html_file, format)
    from svit_deploy import api
    from svit_deploy.bench.printing import printed
    from svit_deploy.pages.bench import bench_page

    invocation: Invocation = context.obj
    with invocation.plan(dry_run, json_file, html_file) as plan, invocation.progress() as progress:
        report = api.bench(targets, settings, progress=progress, plan=plan)
    record = dated(report.to_dict(invocation.command, raw))
    invocation.show(printed(report), format, record, json_file)
    write_html(
        html_file, lambda: bench_page(record | {"results": report.results_to_list(raw=True)})
    )
    report.raise_for_failures()
