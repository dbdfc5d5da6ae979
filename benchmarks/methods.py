"""Every method on ONNX Runtime CPU against its dense twin, of the same weights and sizes.

Random weights from `svit-deploy init` at the published sizes and settings, batch 8, one thread, all
graphs in one interleaved run. What is compared is the processor time of the thread that runs them,
which other programs on the machine hardly change. Prints the speed-up beside the ratio of
multiply-adds, counted on the very graphs that are timed.

    python benchmarks/methods.py --output /tmp/methods
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from svit_deploy import api
from svit_deploy.bundle import open_bundle
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.images import load_images, synthetic_images

BATCH, IMAGES = 8, 32


@dataclass(frozen=True)
class Case:
    """A preset, and the preset of its dense twin if its own weights have none."""

    preset: str
    twin: str | None = None


CASES = (
    Case("svit_s"),
    Case("dynamicvit_s"),
    Case("evit_s"),
    Case("evovit_s"),
    Case("ats_s"),
    Case("avit_s"),
    Case("tome_s"),
    Case("mergence_s"),
    Case("evit_lvvit_s"),
    Case("mergence_lvvit_s"),
    Case("stvit_s", "deit_small"),
    Case("stvit_lvvit_s", "lvvit_s"),
    Case("stvit_swin_t", "swin_t"),
    Case("stvit_swin_s", "swin_s"),
    Case("stvitr_s", "swin_s"),
    Case("dynamicvit_swin_s"),
    Case("dynamicvit_convnext_s"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3, help="each runs every graph twice")
    parser.add_argument("--only", nargs="*", help="presets")
    options = parser.parse_args()
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    images = output / "images.npz"
    np.savez(images, images=np.stack(synthetic_images(IMAGES, (224, 224)).arrays))
    cases = [case for case in CASES if not options.only or case.preset in options.only]
    bundles = [bundle for case in cases for bundle in build(case, output, images)]
    times = measure(bundles, images, options.rounds)
    rows = []
    for number, case in enumerate(cases):
        dense, own = (np.array(times[2 * number + i]) for i in (0, 1))
        ratio = count(bundles[2 * number], images) / count(bundles[2 * number + 1], images)
        speedup = float(np.median(dense / own))  # of runs beside each other
        rows.append(
            {
                "preset": case.preset,
                "dense_s": float(np.median(dense)),
                "reduced_s": float(np.median(own)),
                "speedup": speedup,
                "least": float((dense / own).min()),
                "most": float((dense / own).max()),
                "flop_ratio": ratio,
                "reached": (speedup - 1) / (ratio - 1),
            }
        )
        print(markdown(rows[-1]), flush=True)
    (output / "methods.json").write_text(json.dumps(rows, indent=2) + "\n")


def measure(bundles: list[Path], images: Path, rounds: int) -> list[list[float]]:
    """Processor seconds of each run of each bundle, every second pass in reverse order."""
    with ExitStack() as stack:
        engines, feeds = [], []
        for bundle in bundles:
            opened = open_bundle(bundle)
            engine = stack.enter_context(OnnxRuntimeEngine(opened.model_path, threads=1))
            config = opened.config
            inputs = load_images(images).inputs(config.preprocess, config.image_size)[:BATCH]
            engine.run({"images": inputs}, ["logits"])
            engines.append(engine)
            feeds.append({"images": inputs})
        times: list[list[float]] = [[] for _ in bundles]
        numbers = range(len(bundles))
        for step in range(2 * rounds):
            for number in reversed(numbers) if step % 2 else numbers:
                start = time.thread_time()
                engines[number].run(feeds[number], ["logits"])
                times[number].append(time.thread_time() - start)
    return times


def build(case: Case, output: Path, images: Path) -> list[Path]:
    """The dense twin's bundle, then the method's."""
    bundles = []
    for preset, tokens in ((case.twin or case.preset, "dense"), (case.preset, None)):
        checkpoint, bundle = (
            output / f"{preset}.safetensors",
            output / f"{preset}-{tokens or 'own'}",
        )
        if not bundle.exists():
            api.init(preset, checkpoint, force=True)
            api.export(
                checkpoint, bundle, arch=preset, tokens=tokens, calibration=images, batch="1:8:32"
            )
        bundles.append(bundle)
    return bundles


def count(bundle: Path, images: Path) -> float:
    """Multiply-adds per image, of all products of a graph as it runs on a batch of images."""
    opened = open_bundle(bundle)
    model = onnx.ModelProto()
    model.CopyFrom(opened.load_model())
    products = [n for n in model.graph.node if n.op_type in ("Gemm", "MatMul", "Conv")]
    for number, node in enumerate(products):
        for part, value in (("a", node.input[0]), ("b", node.input[1]), ("y", node.output[0])):
            name = f"count_{number}_{part}"
            model.graph.node.append(helper.make_node("Shape", [value], [name]))
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.INT64, None))
    config = opened.config
    inputs = load_images(images).inputs(config.preprocess, config.image_size)[:BATCH]
    names = [f"count_{i}_{part}" for i in range(len(products)) for part in "aby"]
    with OnnxRuntimeEngine(model.SerializeToString()) as engine:
        shapes = engine.run({"images": inputs}, names)
    total = 0
    for number, node in enumerate(products):
        a, b, y = (shapes[f"count_{number}_{part}"] for part in "aby")
        # Each result sums over what the two have in common.
        common = np.prod(b[1:]) if node.op_type == "Conv" else a[-1]
        total += int(np.prod(y)) * int(common)
    return total / BATCH


def markdown(row: dict[str, float]) -> str:
    return (
        f"| {row['preset']} | {row['dense_s'] * 1e3:.0f} ms | {row['reduced_s'] * 1e3:.0f} ms "
        f"| **{row['speedup']:.2f}x** ({row['least']:.2f}-{row['most']:.2f}) "
        f"| {row['flop_ratio']:.2f}x | {row['reached']:.0%} |"
    )


if __name__ == "__main__":
    main()
