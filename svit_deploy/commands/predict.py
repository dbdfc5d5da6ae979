"""`svit-deploy predict`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svit_deploy.commands.common import EngineOrProvider, Invocation, MaxImages, Threads


def predict(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that export wrote.")],
    images: Annotated[Path, typer.Argument(metavar="IMAGE", help="Picture, folder or .npz.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder to write.")
    ],
    min_score: Annotated[
        float, typer.Option(metavar="SCORE", min=0, max=1, help="Draw detections from it on.")
    ] = 0.3,
    max_images: MaxImages = 100,
    provider: EngineOrProvider = None,
    threads: Threads = 0,
) -> None:
    """Detect objects and draw boxes, masks and the tokens computed."""
    from svit_deploy import api

    invocation: Invocation = context.obj
    with invocation.progress() as progress:
        files = api.predict(
            bundle,
            output,
            images=images,
            min_score=min_score,
            max_images=max_images,
            provider=provider,
            threads=threads,
            progress=progress,
        )
    typer.echo(f"wrote {len(files)} files to {output}")
