"""`svit-deploy plugins build` and `plugins path`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svit_deploy.commands.common import DryRunFlag, Invocation
from svit_deploy.errors import UsageError

plugins = typer.Typer(
    name="plugins",
    help="Build the TensorRT plugins for compaction, gather and scatter.",
    rich_markup_mode=None,
)


@plugins.command()
def build(
    context: typer.Context,
    tensorrt_include: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Include folder of the TensorRT version that will run the plugins."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FOLDER",
            help="Folder to write. By default where `plugins path` looks.",
        ),
    ] = None,
    sm: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Compute capabilities, for example 80,90; by default 75 to 120. Jetson Orin: 87.",
        ),
    ] = None,
    nvcc: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="CUDA compiler; by default that on PATH, in CUDA_HOME or /usr/local/cuda.",
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=1024, help="Parallel compile jobs; 0 means one per core."
        ),
    ] = 0,
    dry_run: DryRunFlag = False,
) -> None:
    """Compile the plugin library, with the CUDA toolkit and CMake."""
    from svit_deploy.plugins.build import build_plugins

    invocation: Invocation = context.obj
    with invocation.plan(dry_run) as plan, invocation.progress() as progress:
        library, made = build_plugins(
            tensorrt_include,
            output,
            sm=_parse_sm(sm),
            nvcc=nvcc,
            jobs=jobs,
            progress=progress,
            plan=plan,
        )
    typer.echo(
        f"built {library} for TensorRT {made.tensorrt}, sm {' '.join(map(str, made.sm))}, "
        f"with nvcc {made.nvcc}"
    )


@plugins.command()
def path() -> None:
    """Print the path of the library that `build` made."""
    from svit_deploy.plugins import library_path

    typer.echo(str(library_path()))


def _parse_sm(text: str | None) -> tuple[int, ...] | None:
    """`75,90`"""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"--sm {text!r} is not a list of GPU generations", "write --sm 75,90")
    return tuple(map(int, parts))
