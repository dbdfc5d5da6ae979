"""What `svit-deploy export` prints of a bundle that it wrote."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from svit_deploy.bundle import MANIFEST, Bundle
from svit_deploy.engines.tensorrt.sidecar import read_sidecar
from svit_deploy.export.outline import (
    assumed_line,
    checkpoint_line,
    gates_line,
    graph_line,
    model_line,
)
from svit_deploy.export.settings import ExportSettings
from svit_deploy.io.hub import spelled
from svit_deploy.model.config import BatchRange


def summary(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """Label and text of the lines that tell what was made of what."""
    manifest, source = bundle.manifest, bundle.manifest["checkpoint"]
    if source:
        name = manifest.get("origin", {}).get("id", source["name"])
        yield checkpoint_line(name, source["sha256"])
    yield model_line(manifest["arch"], bundle.config, bundle.task, bundle.sizes)
    yield gates_line(bundle.config)
    if manifest["gates"]:
        yield from _gates(manifest)
    size = f"{manifest['files'][bundle.model_path.name]['size_bytes'] / 2**20:.1f}"
    batch = BatchRange(**manifest["batch"])
    yield graph_line(size, bundle.precision, manifest["opset"], bundle.mode, batch)
    if (quantised := manifest.get("quantised")) is not None:
        count, method, left = (quantised[key] for key in ("steps", "method", "float32"))
        text = f"{len(count)} linear layers, ranges by {method}; {len(left)} of blocks stay float32"
        yield bundle.precision, text
    if bundle.engine_path is not None:
        yield "engine", _engine(bundle.engine_path)
    if bundle.split:
        yield "heads", "heads.onnx, which runs in ONNX Runtime behind the engine"
    yield "done", str(bundle.path)
    yield from assumed_line(bundle.assumed)


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
        if quantised := layers.get("quantised"):
            made += f", {quantised} linear layers in {sidecar.precision}"
    gpu = sidecar.gpu.name if sidecar.gpu else "any GPU it supports"
    return (
        f"{sidecar.engine}, {sidecar.engine_size / 2**20:.1f} MiB, {sidecar.target} "
        f"{sidecar.tensorrt} for {gpu}, built in {sidecar.build_s:.0f} s{made}, profiles {profiles}"
    )


def _gates(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What was aimed at and measured of each gate."""
    gates, samples = manifest["gates"], manifest["reference"]
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
