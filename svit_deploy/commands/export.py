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
from svit_deploy.manifest import MANIFEST

if TYPE_CHECKING:
    from svit_deploy.bundle import Bundle

Shapes = Annotated[
    list[str] | None,
    typer.Option(metavar="images:BxCxHxW", help="As trtexec's, once for each profile."),
]


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
        str | None,
        typer.Option(
            metavar="MODE",
            help="dynamic, budget, masked, static, or dense (without gates). By default the "
            "method's own: for SViT dynamic, and budget for TensorRT.",
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="TYPE", help="fp32, fp16 or bf16; gates stay in fp32.")
    ] = "fp32",
    target: Annotated[
        str, typer.Option(metavar="NAME", help="onnx, tensorrt or tensorrt-rtx.")
    ] = "onnx",
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="MIN:OPT:MAX",
            help="Batch sizes, or one number; 1:1:32 by default, 1 for a detector's engine. For "
            "an engine with several profiles: 1,2:8:8,9:32:32.",
        ),
    ] = None,
    min_shapes: Shapes = None,
    opt_shapes: Shapes = None,
    max_shapes: Shapes = None,
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
    plugins: Annotated[
        bool, typer.Option("--plugins", help="Row moves as nodes for the TensorRT plugins.")
    ] = False,
    plugin_library: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Their library, or none; see svit-deploy plugins."),
    ] = None,
    workspace: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Scratch memory of an engine, 4GiB.")
    ] = None,
    opt_level: Annotated[
        int | None, typer.Option(metavar="N", help="Of the engine's builder, 0 to 5.")
    ] = None,
    timing_cache: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Of the engine's builder, or none."),
    ] = None,
    allow_pickle: AllowPickle = False,
    force: Force = False,
) -> None:
    """Export a checkpoint to an ONNX model, or a TensorRT engine.

    Give a bundle in place of the checkpoint to build an engine of it on this machine.
    """
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
            precision=precision,
            plugins=plugins,
            target=target,
            batch=batch,
            min_shapes=min_shapes or (),
            opt_shapes=opt_shapes or (),
            max_shapes=max_shapes or (),
            image_size=image_size,
            budget=budget,
            budget_percentile=budget_percentile,
            calibration=calibration,
            calibrate_gates=calibrate_gates,
            target_keep=target_keep,
            max_images=max_images,
            gate_outputs=gate_outputs,
            opset=opset,
            optimization_level=opt_level,
            workspace=workspace,
            timing_cache=timing_cache,
            plugin_library=plugin_library,
            allow_pickle=allow_pickle,
            force=force,
            command=invocation.command,
            progress=progress,
        )
    for label, text in _summary(bundle):
        typer.echo(f"{label:11} {text}")
    verify = ["svit-deploy", "verify", str(output)]
    if not checkpoint.is_dir() and checkpoint.name != MANIFEST:
        verify += ["--against", str(checkpoint)]
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
        yield "gates", "none, the same tokens are computed of every image"
    size = model["size_bytes"] / 2**20
    yield (
        "onnx",
        f"{bundle.model_path.name}, {size:.1f} MiB, {bundle.precision}, opset "
        f"{manifest['opset']}, token mode "
        f"{bundle.mode.value}, batch {manifest['batch']['min']} to {manifest['batch']['max']}, "
        "no random operator",
    )
    if bundle.engine_path is not None:
        yield "engine", _engine(bundle)
    if bundle.is_parted:
        yield "heads", "heads.onnx, which runs in ONNX Runtime behind the engine"
    yield "done", str(bundle.path)


def _engine(bundle: Bundle) -> str:
    from svit_deploy.engines.tensorrt.sidecar import read_sidecar

    assert bundle.engine_path is not None
    sidecar = read_sidecar(bundle.engine_path)
    profiles = ", ".join(map(str, sidecar.profiles))
    layers = sidecar.settings.get("layers")
    made = ""
    if isinstance(layers, dict):
        made = (
            f", {layers['total']} layers, {layers['fused_attention']} of them fused attention, "
            f"{layers['host_copies']} waits for sizes"
        )
    gpu = sidecar.gpu.name if sidecar.gpu else "any GPU it supports"
    return (
        f"{sidecar.engine}, {sidecar.engine_size / 2**20:.1f} MiB, {sidecar.target} "
        f"{sidecar.tensorrt} for {gpu}, built in {sidecar.build_s:.0f} s{made}, profiles {profiles}"
    )


def _gates(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    gates, samples = manifest["gates"], manifest["reference"]
    blocks = ", ".join(str(gate["block"]) for gate in gates)
    if gates[0]["threshold"] is None:
        yield "selections", f"{len(gates)}, at blocks {blocks}; as many tokens as the method keeps"
    else:
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
