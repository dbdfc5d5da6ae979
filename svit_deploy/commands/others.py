"""`svit-deploy inspect`, `visualize`, `init`, `doctor` and `quickstart`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svit_deploy.commands.common import (
    Force,
    Invocation,
    Json,
    MaxImages,
    Provider,
    Threads,
    check_json,
    write_json,
)


def inspect(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Checkpoint, bundle or .onnx file.")],
    json_file: Json = None,
) -> None:
    """Show what is in a file; nothing in it is executed."""
    check_json(json_file)
    from svit_deploy import api

    invocation: Invocation = context.obj
    inspection = api.inspect(file)
    inspection.render(invocation.console(json_file))
    write_json(json_file, inspection.to_dict())


def visualize(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that export wrote.")],
    images: Annotated[Path, typer.Option(metavar="PATH", help="Folder, picture or .npz.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder to write.")
    ],
    max_images: MaxImages = 100,
    provider: Provider = "cpu",
    threads: Threads = 0,
) -> None:
    """Draw which tokens a bundle keeps, over the pictures."""
    from svit_deploy import api

    invocation: Invocation = context.obj
    with invocation.progress() as progress:
        files = api.visualize(
            bundle,
            output,
            images=images,
            max_images=max_images,
            provider=provider,
            threads=threads,
            progress=progress,
        )
    typer.echo(f"wrote {len(files)} files to {output}")


def init(
    context: typer.Context,
    arch: Annotated[
        str, typer.Argument(metavar="NAME|YAML", help="svit_s, deit_small, ... or a file.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help=".pth or .safetensors.")
    ],
    keep_ratio: Annotated[
        str | None,
        typer.Option(
            metavar="RATIOS", help="Per gate or stage, 0.7,0.49,0.343; by default those of NAME."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the weights.")] = 0,
    force: Force = False,
) -> None:
    """Write random weights with gates set, to plan before training.

    On synthetic images each gate keeps the wanted ratio of its tokens.
    """
    from svit_deploy import api

    made = api.init(arch, output, keep_ratio=keep_ratio, seed=seed, force=force)
    ratios = ", ".join(f"{ratio:.3f}" for ratio in made.keep_ratios)
    gates = f", gates keep {ratios} of synthetic images" if ratios else ""
    typer.echo(f"wrote {output}: random {made.arch}{gates}")


def doctor(context: typer.Context, json_file: Json = None) -> None:
    """Show which commands work here, and what the others need."""
    check_json(json_file)
    from svit_deploy.doctor import examine

    invocation: Invocation = context.obj
    diagnosis = examine()
    diagnosis.render(invocation.console(json_file))
    write_json(json_file, diagnosis.to_dict())


def quickstart(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder to write.")
    ] = Path("quickstart"),
    force: Force = False,
) -> None:
    """Run everything once on the digits model that comes along."""
    from svit_deploy.quickstart import run_quickstart

    invocation: Invocation = context.obj
    with invocation.progress() as progress:
        run_quickstart(output, invocation.console(), progress, force=force)
