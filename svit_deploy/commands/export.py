"""`svit-deploy export`"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svit_deploy.commands.common import (
    AllowPickle,
    Arch,
    Checkpoint,
    Force,
    Invocation,
    MaxImages,
    Set,
    parse_overrides,
)

if TYPE_CHECKING:
    from svit_deploy.bundle import Bundle


def export(
    context: typer.Context,
    checkpoint: Checkpoint,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder to write.")
    ],
    task: Annotated[
        str, typer.Option(metavar="TASK", help="classify, backbone (of a detector) or detect.")
    ] = "classify",
    arch: Arch = None,
    overrides: Set = None,
    tokens: Annotated[
        str,
        typer.Option(metavar="MODE", help="dynamic, budget, masked, or dense (without gates)."),
    ] = "dynamic",
    batch: Annotated[
        str, typer.Option(metavar="MIN:OPT:MAX", help="Batch sizes, or one number.")
    ] = "1:1:32",
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS",
            help="224 or 224x320; by default the checkpoint's. For detectors also a range, "
            "64x64:800x1216:1344x1344, which is the default.",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS",
            help="Per gate, with --tokens budget: counts 150,110,80, ratios 0.75,0.55,0.4 or auto.",
        ),
    ] = None,
    budget_percentile: Annotated[
        float, typer.Option(metavar="PERCENT", help="Share of images that must fit, with auto.")
    ] = 100.0,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Images for --budget auto and the recorded samples."),
    ] = None,
    calibrate_gates: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Images to choose each gate's threshold from."),
    ] = None,
    target_keep: Annotated[
        str | None,
        typer.Option(
            metavar="RATIOS",
            help="Keep ratios for it, 0.7,0.49,0.343; by default the trained ones.",
        ),
    ] = None,
    max_images: MaxImages = 1000,
    gate_outputs: Annotated[
        bool, typer.Option(help="Whether keep_mask, margin and overflow are outputs.")
    ] = True,
    opset: Annotated[int, typer.Option(metavar="N", help="ONNX operator set.")] = 20,
    allow_pickle: AllowPickle = False,
    force: Force = False,
) -> None:
    """Export a checkpoint to an ONNX bundle."""
    from svit_deploy import api

    invocation: Invocation = context.obj
    with invocation.progress() as progress:
        bundle = api.export(
            checkpoint,
            output,
            task=task,
            arch=arch,
            overrides=parse_overrides(overrides),
            tokens=tokens,
            batch=batch,
            image_size=image_size,
            budget=budget,
            budget_percentile=budget_percentile,
            calibration=calibration,
            calibrate_gates=calibrate_gates,
            target_keep=target_keep,
            max_images=max_images,
            gate_outputs=gate_outputs,
            opset=opset,
            allow_pickle=allow_pickle,
            force=force,
            command=invocation.command,
            progress=progress,
        )
    for label, text in _summary(bundle):
        typer.echo(f"{label:11} {text}")
    verify = ["svit-deploy", "verify", str(output), "--against", str(checkpoint)]
    verify += ["--arch", arch] if arch else []
    verify += [part for pair in overrides or [] for part in ("--set", pair)]
    typer.echo(f"next:       {shlex.join(verify)}")
    bench = ["svit-deploy", "bench", str(output), "--images"]
    typer.echo(f"            {shlex.join(bench)} PICTURES")


def _summary(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """Label and text of the lines that tell what was made of what."""
    manifest, config = bundle.manifest, bundle.config
    source, model = manifest["checkpoint"], manifest["files"][bundle.model_path.name]
    if source:
        yield "checkpoint", f"{source['name']}, sha256 {source['sha256'][:16]}"
    size = "x".join(map(str, config.image_size))
    if "task" in manifest:
        low, high = ("x".join(map(str, manifest["image"][name])) for name in ("min", "max"))
        size = f"task {manifest['task']}, {size if low == high else f'{low} to {high}'}"
    yield "model", f"{manifest['arch']} ({config.family}), {size} pixels"
    if manifest["gates"]:
        yield from _gates(manifest)
    else:
        yield "gates", "none, every block computes all tokens"
    size = model["size_bytes"] / 2**20
    yield (
        "onnx",
        f"{bundle.model_path.name}, {size:.1f} MiB, opset {manifest['opset']}, token mode "
        f"{bundle.mode.value}, batch {manifest['batch']['min']} to {manifest['batch']['max']}, "
        "no random operator",
    )
    yield "done", str(bundle.path)


def _gates(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    gates, samples = manifest["gates"], manifest["reference"]
    blocks = ", ".join(str(gate["block"]) for gate in gates)
    yield "gates", f"{len(gates)}, in front of blocks {blocks}; no sampling, a tie prunes"
    rows = {
        "target": [f"{gate['target_keep']:.3f}" for gate in gates if gate["target_keep"]],
        "keep": [f"{gate['measured_keep']:.3f}" for gate in gates],
        "threshold": [f"{gate['threshold']:.3f}" for gate in gates if gate["threshold"]],
        "budget": [f"{gate['budget']}" for gate in gates if gate["budget"]],
    }
    for label, values in rows.items():
        if values:
            yield f"  {label}", " ".join(f"{value:>6}" for value in values)
    if rows["threshold"]:
        yield "", "thresholds set and tokens kept on the images of --calibrate-gates"
    else:
        yield "", f"tokens kept on {samples['images']} images ({samples['source']})"
