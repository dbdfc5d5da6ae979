"""SViT-S on ONNX Runtime CPU: every token mode and the naive export against the dense twin.

Random weights from `svit-deploy init`, 224 px, nine gates at the paper's keep ratios, all graphs
interleaved in one run. Prints the table of docs/speed.md.

    python benchmarks/svit_s.py --output /tmp/svit_s
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from rich.console import Console

from svit_deploy import api
from svit_deploy.bench.printing import render
from svit_deploy.bench.report import BenchReport
from svit_deploy.bench.settings import BenchSettings
from svit_deploy.bundle import open_bundle
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.images import load_images, synthetic_images
from svit_deploy.loading.load import load_model
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.model import without_gates
from svit_deploy.progress import show_progress

RATIOS = "0.7,0.49,0.343"
IMAGES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=20.0, help="per graph and batch size")
    options = parser.parse_args()
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    images = output / "images.npz"
    np.savez(images, images=np.stack(synthetic_images(IMAGES, (224, 224)).arrays))
    targets = build(output, images)
    report = measure(targets, images, options)
    bundle = open_bundle(output / "dynamic")
    inputs = load_images(images).inputs(bundle.config.preprocess, bundle.config.image_size)
    with OnnxRuntimeEngine(bundle.model_path) as engine:
        keep_mask = engine.run({"images": inputs}, ["keep_mask"])["keep_mask"]
    limit = flops_dense(bundle.config) / flops_pruned(bundle.config, keep_mask)
    print(markdown(report, limit))


def measure(targets: list[Path], images: Path, options: argparse.Namespace) -> BenchReport:
    """Times all targets in one interleaved run, prints the report and keeps it as bench.json."""
    settings = BenchSettings(
        batches=tuple(int(size) for size in options.batches.split(",")),
        duration_s=options.seconds,
        min_samples=11,
        threads=options.threads,
        worst_case=False,
    )
    with show_progress() as progress:
        report = api.bench(targets, images=images, settings=settings, progress=progress)
    render(report, Console(width=120))
    (options.output / "bench.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    return report


def build(output: Path, images: Path) -> list[Path]:
    """Exports what is compared; the dense twin first, as the baseline."""
    checkpoint = output / "svit_s.pth"
    api.init("svit_s", checkpoint, keep_ratio=RATIOS, force=True)
    graphs = {
        "dense": {"tokens": "dense"},
        "dynamic": {"tokens": "dynamic"},
        "budget-at-target": {"tokens": "budget", "budget": RATIOS},
        "budget-exact": {"tokens": "budget", "budget": "auto"},
        "masked": {"tokens": "masked"},
    }
    for name, options in graphs.items():
        api.export(
            checkpoint, output / name, calibration=images, batch="1:8:32", force=True, **options
        )
    from naive import trace  # needs PyTorch's exporter, which others of this folder do not

    model = load_model(checkpoint)
    traced = [output / "naive.onnx", output / "dense-traced.onnx"]
    trace(model, traced[0], opset=18)
    trace(without_gates(model), traced[1], opset=20)
    return [*(output / name for name in graphs), *traced]


def flops_dense(config: ModelConfig) -> float:
    """Multiply-adds per image of the patch embedding and the blocks, every token computed."""
    return _flops(config, np.full((1, config.depth), config.num_tokens))


def flops_pruned(config: ModelConfig, keep_mask: np.ndarray) -> float:
    """The same for the kept tokens of `keep_mask [n, G, S]`, gates included."""
    tokens = np.full((len(keep_mask), config.depth), config.num_tokens)
    tokens[:, list(config.gate_blocks)] = keep_mask.sum(axis=2)
    width = config.embed_dim
    return _flops(config, tokens) + config.num_gates * config.num_tokens * width * (width // 4)


def _flops(config: ModelConfig, tokens: np.ndarray) -> float:
    """Multiply-adds of blocks that compute `tokens [n, L]` rows, mean over the images."""
    width, hidden = config.embed_dim, config.mlp_dim
    linear = tokens * (4 * width**2 + 2 * width * hidden)
    attention = tokens.astype(float) ** 2 * 2 * width
    patches = config.num_patches * 3 * config.patch_size**2 * width
    return float((linear + attention).sum(axis=1).mean()) + patches


def markdown(report: BenchReport, limit: float | None = None) -> str:
    """A row per graph, a column per batch size: p50 and the speed-up over dense."""
    results = report.results
    batches = sorted({result.batch for result in results})
    labels = list(dict.fromkeys(result.label for result in results))
    lines = [
        "| graph | " + " | ".join(f"batch {batch}" for batch in batches) + " |",
        "|---|" + "---|" * len(batches),
    ]
    for label in labels:
        cells = []
        for batch in batches:
            result = next(r for r in results if (r.label, r.batch) == (label, batch))
            speedup = f", **{result.speedup.ratio:.2f}x**" if result.speedup else ""
            cells.append(f"{result.latency.p50_ms:.1f} ms{speedup}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    if limit is not None:
        lines.append(f"| FLOP limit | {limit:.2f}x |" + " |" * (len(batches) - 1))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
