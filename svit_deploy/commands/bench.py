"""`svit-deploy bench`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svit_deploy.commands.common import (
    AllowForeign,
    EngineOrProvider,
    Images,
    Invocation,
    Json,
    MaxImages,
    Threads,
    check_json,
    dated,
    parse_limits,
    parse_seconds,
    parse_whole_numbers,
    write_json,
)


def bench(
    context: typer.Context,
    targets: Annotated[
        list[Path],
        typer.Argument(metavar="TARGET", help="Bundles, .onnx or .engine files."),
    ],
    images: Images = None,
    max_images: MaxImages = 1000,
    noise: Annotated[bool, typer.Option("--random", help="Noise instead of images.")] = False,
    allow_noise: Annotated[
        bool, typer.Option("--allow-noise", help="Noise even where content decides.")
    ] = False,
    image_size: Annotated[
        str | None,
        typer.Option(metavar="PIXELS", help="800x1216, for detectors; by default their typical."),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,N", help="Batch sizes, 1,8.")] = "1",
    warmup: Annotated[
        str, typer.Option(metavar="TIME", help="Of each engine and batch size, 1s or 500ms.")
    ] = "1s",
    duration: Annotated[
        str, typer.Option(metavar="TIME", help="Of each engine and batch size, at least.")
    ] = "5s",
    min_samples: Annotated[
        int, typer.Option(metavar="N", min=1, help="Runs of each, at least.")
    ] = 64,
    worst_case: Annotated[bool, typer.Option(help="Whether to time all tokens kept, too.")] = True,
    sweep_tokens: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Plot the latency against kept tokens.")
    ] = None,
    provider: EngineOrProvider = None,
    threads: Threads = 0,
    cuda_graph: Annotated[
        str, typer.Option(metavar="MODE", help="Of engines: auto, on, off, or both side by side.")
    ] = "auto",
    allow_foreign: AllowForeign = False,
    plugin_library: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For engines; by default what `plugins build` made."),
    ] = None,
    device: Annotated[int, typer.Option(metavar="N", min=0, help="Number of the GPU.")] = 0,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Of the order of images and runs.")
    ] = 0,
    require_stable: Annotated[
        bool, typer.Option("--require-stable", help="Fail on unstable timings.")
    ] = False,
    fail_above: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MS", help="Limit, p99=12 or p50=8ms; may be repeated."),
    ] = None,
    json_file: Json = None,
) -> None:
    """Measure bundles, ONNX files or engines against each other.

    Blocks of runs are interleaved on distinct images; the first target is the baseline. Exit code
    7 if a limit of --fail-above or --require-stable is not met.
    """
    check_json(json_file)
    from svit_deploy import api
    from svit_deploy.bench import BenchSettings, check_plot, plot_sweep, render
    from svit_deploy.config import parse_image_size

    invocation: Invocation = context.obj
    settings = BenchSettings(
        batches=parse_whole_numbers(batch, "--batch"),
        warmup_s=parse_seconds(warmup, "--warmup"),
        duration_s=parse_seconds(duration, "--duration"),
        min_samples=min_samples,
        threads=threads,
        provider=provider,
        cuda_graph=cuda_graph,
        allow_foreign=allow_foreign,
        plugin_library=None if plugin_library is None else str(plugin_library),
        device=device,
        worst_case=worst_case,
        sweep=sweep_tokens is not None,
        image_size=None if image_size is None else parse_image_size(image_size),
        seed=seed,
        require_stable=require_stable,
        fail_above=parse_limits(fail_above),
    )
    if sweep_tokens is not None:
        check_plot(sweep_tokens)
    with invocation.progress() as progress:
        report = api.bench(
            list(targets),
            images=images,
            max_images=max_images,
            noise=noise,
            allow_noise=allow_noise,
            settings=settings,
            progress=progress,
        )
    render(report, invocation.console(json_file))
    write_json(json_file, dated(report.to_dict(invocation.command)))
    if sweep_tokens is not None:
        plot_sweep(report, sweep_tokens)
    report.raise_for_failures()
