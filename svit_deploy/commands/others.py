"""`svit-deploy inspect`, `init`, `list`, `doctor` and `quickstart`"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from svit_deploy.commands.common import (
    DryRunFlag,
    Force,
    Invocation,
    Json,
    OutputFolder,
    check_reports,
    write_json,
)
from svit_deploy.commands.completion import one_of
from svit_deploy.loading.settings import preset_names


def _kinds() -> Iterable[str]:
    from svit_deploy.inspection.catalogue import KINDS

    return KINDS


def inspect(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Checkpoint (or hf://OWNER/NAME/FILE, timm:NAME), bundle or .onnx."
        ),
    ],
    json_file: Json = None,
) -> None:
    """Show what is in a file, without executing any of it."""
    check_reports(json_file)
    from svit_deploy import api

    invocation: Invocation = context.obj
    inspection = api.inspect(file)
    inspection.render(invocation.console(json_file))
    write_json(json_file, inspection.to_dict())


def init(
    context: typer.Context,
    arch: Annotated[
        str,
        typer.Argument(
            metavar="NAME|YAML",
            help="Architecture: svit_s, deit_small, ... or a YAML file.",
            autocompletion=one_of(preset_names),
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE", help="File to write, .pth or .safetensors."),
    ],
    keep_ratio: Annotated[
        str | None,
        typer.Option(
            metavar="RATIOS",
            help="Keep ratios per gate or stage, for example 0.7,0.49,0.343; by default those of "
            "the architecture.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed for the weights.")] = 0,
    force: Force = False,
    dry_run: DryRunFlag = False,
) -> None:
    """Write a checkpoint with random weights, to plan ahead.

    Its gates are calibrated to keep the given ratios of tokens on synthetic images.
    """
    from svit_deploy import api

    invocation: Invocation = context.obj
    with invocation.plan(dry_run) as plan:
        made = api.init(arch, output, keep_ratio=keep_ratio, seed=seed, force=force, plan=plan)
    ratios = ", ".join(f"{ratio:.3f}" for ratio in made.keep_ratios)
    gates = f", gates keep {ratios} of synthetic images" if ratios else ""
    typer.echo(f"wrote {output}: random {made.arch}{gates}")


def list_(
    context: typer.Context,
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND",
            help="presets, methods, backbones or tasks; all by default.",
            autocompletion=one_of(_kinds),
        ),
    ] = None,
    json_file: Json = None,
) -> None:
    """List presets, methods, backbones and tasks.

    For each method it says what must be told, and what is assumed unless somebody tells it.
    """
    check_reports(json_file)
    from svit_deploy import api

    invocation: Invocation = context.obj
    catalogue = api.catalogue(kind)
    catalogue.render(invocation.console(json_file))
    write_json(json_file, catalogue.to_dict())


def doctor(context: typer.Context, json_file: Json = None) -> None:
    """Show which commands work here and what the others need."""
    check_reports(json_file)
    from svit_deploy.inspection.doctor import examine

    invocation: Invocation = context.obj
    diagnosis = examine()
    diagnosis.render(invocation.console(json_file))
    write_json(json_file, diagnosis.to_dict())


def quickstart(
    context: typer.Context,
    output: OutputFolder = Path("quickstart"),
    force: Force = False,
    dry_run: DryRunFlag = False,
) -> None:
    """Run every step once on the digits model in the package."""
    from svit_deploy.commands.quickstart import run_quickstart

    invocation: Invocation = context.obj
    with invocation.plan(dry_run) as plan, invocation.progress() as progress:
        run_quickstart(output, invocation.console(), progress, plan, force=force)
