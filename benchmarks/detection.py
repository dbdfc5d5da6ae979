"""Table 5 of SViT's paper on a CPU: methods in ViT-Adapter-Small, alone and in Mask R-CNN.

Random weights from `svit-deploy init`, one image of 800x1216 at a time, seven painted scenes on
which SViT's gates are calibrated to the paper's keep ratios, too. Detectors propose their anchors,
so that heads have as much to do behind each method. All graphs of a part take turns
on one thread, and their processor time is compared. Each pass is kept, so that a run that was
stopped goes on where it was. The last step prints the tables of docs/detection.md.

    python benchmarks/detection.py --output /tmp/table5
    python benchmarks/detection.py --output /tmp/table5 measure --only backbone-methods
"""

from __future__ import annotations

import argparse
import json
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from multiply_adds import multiply_adds
from processor_time import Run, measure, opened
from safetensors.numpy import load_file, save_file
from svit_s import RATIOS

from svit_deploy import api
from svit_deploy.bundle import open_bundle
from svit_deploy.engines.base import Engine
from svit_deploy.images import load_images, synthetic_images
from svit_deploy.model.config import TokenMode
from svit_deploy.names import INPUT
from svit_deploy.tasks.samples import prepare_all

SIZE, IMAGES = (800, 1216), 7
STEPS = ("export", "measure", "verify", "table")


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        preset: of the random weights.
        options: of the export.
        paper: speed-up of the backbone on an A100, where the paper has it.
    """

    title: str
    preset: str
    options: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""


PRESERVE = {"overrides": {"preserve": "true"}}
DYNAMIC = {"target_keep": RATIOS}
ROWS = {
    "dense": Row("ViT-Adapter", "svit_adapter_s", {"tokens": "dense"}, "1.00"),
    "evit": Row("EViT", "evit_adapter_s", paper="1.41"),
    "evit-preserve": Row("EViT + preserve", "evit_adapter_s", PRESERVE),
    "evovit": Row("Evo-ViT", "evovit_adapter_s", paper="1.43"),
    "ats": Row("ATS", "ats_adapter_s", paper="1.00"),
    "ats-preserve": Row("ATS + preserve", "ats_adapter_s", PRESERVE),
    "dynamicvit": Row("DynamicViT", "dynamicvit_adapter_s", paper="1.46"),
    "dynamicvit-preserve": Row("DynamicViT + preserve", "dynamicvit_adapter_s", PRESERVE),
    "svit": Row("SViT", "svit_adapter_s", DYNAMIC, "1.46"),
}
INT8 = {
    "dense-int8": Row("ViT-Adapter, int8", "svit_adapter_s", {"tokens": "dense"}),
    "svit-int8": Row("SViT, int8", "svit_adapter_s", DYNAMIC),
}
METHODS = tuple(name for name in ROWS if name != "dense")
ENGINES = {
    "backbone-bf16": ("svit@onnxruntime", "dense@openvino:bf16", "svit@openvino:bf16"),
    "backbone-int8": ("dense-int8@openvino", "svit-int8@openvino"),
}
"""Of the backbone in other engines, each against the dense one in ONNX Runtime."""
PARTS = {"backbone-methods": METHODS, "detect-methods": METHODS, **ENGINES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", help=f"of {', '.join(STEPS)}; all by default")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--passes", type=int, default=2 * IMAGES, help="over all graphs of a part")
    parser.add_argument("--only", nargs="*", choices=PARTS, help="parts")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    images = options.output / "images.npz"
    if not images.exists():
        np.savez(images, images=np.stack(synthetic_images(IMAGES, SIZE).arrays))
    chosen = {name: PARTS[name] for name in options.only or PARTS}
    for step in options.steps or STEPS:
        if step == "export":
            export(chosen, images, options.output)
        elif step == "measure":
            for name, targets in chosen.items():
                measure_part(name, targets, images, options)
        elif step == "verify":
            verify(chosen, images, options.output)
        elif step == "table":
            print("\n".join(tables(options.output)))
        else:
            parser.error(f"{step} is no step: {', '.join(STEPS)}")


def export(parts: Mapping[str, tuple[str, ...]], images: Path, output: Path) -> None:
    """Exports what the parts compare, and counts what each backbone multiplies."""
    for part, targets in parts.items():
        task = part.partition("-")[0]
        for name in ("dense", *(target.partition("@")[0] for target in targets)):
            row, bundle = (ROWS | INT8)[name], output / f"{task}-{name}"
            if not bundle.exists():
                checkpoint = weights(row.preset, output)
                given: dict[str, Any] = dict(row.options)
                if "target_keep" in given:
                    given["calibrate_gates"] = images
                if name in INT8:
                    given |= {"precision": "int8", "calibration": images}
                size = "x".join(map(str, SIZE))
                common = {"arch": row.preset, "task": task, "image_size": size, "batch": "1"}
                api.export(checkpoint, bundle, **common, **given)
            counted = output / f"{task}-{name}.count.json"
            if not counted.exists() and name in ROWS and (task, name) in needed():
                counted.write_text(json.dumps(count(bundle, images)) + "\n")


def weights(preset: str, output: Path) -> Path:
    """Random ones whose proposals are the anchors, so that heads have the same boxes to look at.

    Else they would find more and larger ones behind one method than behind another.
    """
    checkpoint = output / f"{preset}.safetensors"
    if not checkpoint.exists():
        api.init(preset, checkpoint)
        tensors = load_file(checkpoint)
        for layer in ("rpn_cls", "rpn_reg"):
            tensors[f"rpn_head.{layer}.weight"] *= 0
        save_file(tensors, checkpoint)
    return checkpoint


def needed() -> Iterator[tuple[str, str]]:
    """What is counted: all backbones, and one detector, for heads are the same behind each."""
    yield from (("backbone", name) for name in ROWS)
    yield "detect", "dense"


def count(path: Path, images: Path) -> float:
    """Multiply-adds per image; one tells where each has as many."""
    bundle = open_bundle(path)
    limit = None if bundle.mode is TokenMode.DYNAMIC else 1
    pictures = load_images(images, limit=limit)
    prepared = prepare_all(pictures, bundle.task, bundle.config, bundle.sizes)
    return multiply_adds(bundle, [image.pixels[None] for image in prepared])


def measure_part(part: str, targets: tuple[str, ...], images: Path, options: Namespace) -> None:
    """Processor time of one part, image by image; what is there is not measured again."""
    task, labels = part.partition("-")[0], ("dense", *targets)
    kept = options.output / f"{part}.times.json"
    bundle = open_bundle(options.output / f"{task}-dense")
    prepared = prepare_all(load_images(images), bundle.task, bundle.config, bundle.sizes)
    inputs = [image.pixels[None] for image in prepared]
    outputs = bundle.task.outputs()

    def runs(engine: Engine) -> Run:
        return lambda step: engine.run({INPUT: inputs[step % IMAGES]}, outputs)

    with ExitStack() as stack:
        paths = [options.output / f"{task}-{label}" for label in labels]
        engines = [stack.enter_context(opened(path)) for path in paths]
        measure([runs(engine) for engine in engines], options.passes, kept)


def verify(parts: Mapping[str, tuple[str, ...]], images: Path, output: Path) -> None:
    """Verifies what the parts measured against its weights, in its engine; keeps the verdicts."""
    kept = output / "verified.json"
    for part, targets in parts.items():
        task = part.partition("-")[0]
        for target in ("dense", *targets):
            name, _, engine = target.partition("@")
            verdicts = json.loads(kept.read_text()) if kept.exists() else {}
            if f"{task}-{target}" in verdicts:
                continue
            runtime, _, precision = engine.partition(":")
            report = api.verify(
                output / f"{task}-{name}",
                engine=runtime or None,
                engine_precision=precision or None,
            )
            verdicts[f"{task}-{target}"] = [report.passed, report.verdict]
            kept.write_text(json.dumps(verdicts, indent=2) + "\n")


def tables(output: Path) -> Iterator[str]:
    """What has been measured so far."""
    results = dict(measured(output))
    counts = {
        path.name.removesuffix(".count.json"): json.loads(path.read_text())
        for path in output.glob("*.count.json")
    }
    heads = counts.get("detect-dense", np.nan) - counts.get("backbone-dense", np.nan)
    titles = ["time", "FPS ratio", "FLOP ratio"]
    yield f"| {' | '.join(['method', *titles, *titles, 'backbone on an A100'])} |"
    yield "|---" * 8 + "|"
    for name, row in ROWS.items():
        cells = [row.title]
        own, dense = (counts.get(f"backbone-{n}", np.nan) for n in (name, "dense"))
        for task, added in (("backbone", 0.0), ("detect", heads)):
            found = results.get(f"{task}-{name}")
            if found is None:
                cells += ["", "", ""]
                continue
            ratio = (dense + added) / (own + added)
            cells += [f"{np.median(found[:, 1]):.2f} s", speedup(found), f"{ratio:.2f}"]
        yield f"| {' | '.join([*cells, row.paper])} |"
    verdicts_at = output / "verified.json"
    verdicts = json.loads(verdicts_at.read_text()) if verdicts_at.exists() else {}
    yield ""
    yield "| backbone | FPS ratio | verify |"
    yield "|---|---|---|"
    for part, targets in ENGINES.items():
        for target in targets:
            found = results.get(f"{part.partition('-')[0]}-{target}")
            if found is not None:
                passed, verdict = verdicts.get(f"backbone-{target}", (None, "not run"))
                yield f"| {target} | {speedup(found)} | {'passed' if passed else verdict} |"


def measured(output: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Of each target, such as `backbone-svit`, seconds `[passes, 2]`: its dense twin's, its own."""
    for part, targets in PARTS.items():
        path = output / f"{part}.times.json"
        if path.exists():
            times = np.array(json.loads(path.read_text()))
            task = part.partition("-")[0]
            for number, target in enumerate(("dense", *targets)):
                yield f"{task}-{target}", times[:, [0, number]]


def speedup(times: np.ndarray) -> str:
    """The median of runs beside each other, least and most."""
    found = times[:, 0] / times[:, 1]
    if (found == 1).all():
        return "1"
    return f"**{np.median(found):.2f}** ({found.min():.2f}–{found.max():.2f})"


if __name__ == "__main__":
    main()
