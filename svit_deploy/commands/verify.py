"""`svit-deploy verify`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svit_deploy.commands.common import (
    AllowForeign,
    AllowPickle,
    Arch,
    EngineOrProvider,
    Images,
    Invocation,
    Json,
    MaxImages,
    Set,
    Threads,
    check_json,
    dated,
    parse_overrides,
    write_json,
)
from svit_deploy.errors import VerificationFailed


def verify(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that export wrote.")],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT", help="By default the outputs that were recorded at export."
        ),
    ] = None,
    images: Images = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Labels of --images, for accuracy.")
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="COCO annotations of --images: tells a detector's AP."),
    ] = None,
    arch: Arch = None,
    overrides: Set = None,
    max_images: MaxImages = 1000,
    provider: EngineOrProvider = None,
    threads: Threads = 0,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=2, help="Runs that must agree to the bit.")
    ] = 3,
    allow_foreign: AllowForeign = False,
    allow_pickle: AllowPickle = False,
    json_file: Json = None,
) -> None:
    """Compare a bundle with its reference, gate by gate.

    Exit code 6 if they differ.
    """
    check_json(json_file)
    from svit_deploy import api

    invocation: Invocation = context.obj
    with invocation.progress() as progress:
        report = api.verify(
            bundle,
            against=against,
            images=images,
            labels=labels,
            annotations=annotations,
            arch=arch,
            overrides=parse_overrides(overrides),
            max_images=max_images,
            provider=provider,
            threads=threads,
            repeats=repeats,
            allow_foreign=allow_foreign,
            allow_pickle=allow_pickle,
            progress=progress,
        )
    report.render(invocation.console(json_file))
    write_json(json_file, dated(report.to_dict(invocation.command)))
    if not report.passed:
        raise VerificationFailed(report.verdict.removeprefix("FAIL "), "do not ship this bundle")
