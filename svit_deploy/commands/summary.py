"""What `svit-deploy export` prints of a bundle that it wrote."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from svit_deploy.bundle import MANIFEST, Bundle
from svit_deploy.engines.tensorrt.sidecar import read_sidecar
from svit_deploy.export.settings import DEFAULT_TASK, ExportSettings
from svit_deploy.io.hub import spelled
from svit_deploy.model.assumption import in_words


def summary(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """Label and text of the lines that tell what was made of what."""
    manifest, config, sizes = bundle.manifest, bundle.config, bundle.sizes
    source, model = manifest["checkpoint"], manifest["files"][bundle.model_path.name]
    if source:
        name = manifest.get("origin", {}).get("id", source["name"])
        yield "checkpoint", f"{name}, sha256 {source['sha256'][:16]}"
    task = "" if bundle.task.name == DEFAULT_TASK else f"task {bundle.task.name}, "
    low, high = ("x".join(map(str, size)) for size in (sizes.min, sizes.max))
    size = low if sizes.fixed else f"{low} to {high}"
    yield "model", f"{manifest['arch']} ({config.family}), {task}{size} pixels"
    if manifest["gates"]:
        yield from _gates(manifest)
    else:
        yield "gates", "none, the same tokens are computed of every image"
    yield (
        "onnx",
        f"{bundle.model_path.name}, {model['size_bytes'] / 2**20:.1f} MiB, {bundle.precision}, "
        f"opset {manifest['opset']}, token mode {bundle.mode.value}, batch "
        f"{manifest['batch']['min']} to {manifest['batch']['max']}, no random operator",
    )
    if bundle.engine_path is not None:
        yield "engine", _engine(bundle.engine_path)
    if bundle.split:
        yield "heads", "heads.onnx, which runs in ONNX Runtime behind the engine"
    yield "done", str(bundle.path)
    if bundle.assumed:
        settings = in_words(bundle.assumed)
        yield "assumed", f"{settings}; give --set NAME=VALUE for what was trained otherwise"


def next_steps(source: Path, output: Path, settings: ExportSettings) -> Iterator[tuple[str, str]]:
    """Lines with the commands to run next."""
    verify = ["svit-deploy", "verify", str(output)]
    if not source.is_dir() and source.name != MANIFEST:
        verify += ["--against", spelled(source)]
    verify += ["--arch", settings.arch] if settings.arch else []
    verify += ["--weights", settings.weights] if settings.weights else []
    for key, value in settings.overrides.items():
        verify += ["--set", f"{key}={value}"]
    yield "next:", shlex.join(verify)
    yield "", f"{shlex.join(['svit-deploy', 'bench', str(output), '--images'])} PICTURES"


def _engine(path: Path) -> str:
    sidecar = read_sidecar(path)
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
