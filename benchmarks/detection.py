"""SViT-Adapter-S against its dense twin on ONNX Runtime CPU: backbone and whole detector.

Random weights from `svit-deploy init`, gates calibrated to the paper's keep ratios on photographs
that scikit-image and scikit-learn bring along. Prints the table of docs/detection.md.

    pip install scikit-image
    python benchmarks/detection.py --output /tmp/svit_adapter_s
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from rich.console import Console

from svit_deploy import api
from svit_deploy.bench.inputs import Inputs
from svit_deploy.bench.printing import render
from svit_deploy.bench.report import BenchReport, TargetResult
from svit_deploy.bench.settings import BenchSettings
from svit_deploy.bench.whole import of_images_alone
from svit_deploy.bundle import open_bundle
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.images import load_images, read_picture
from svit_deploy.model.config import ModelConfig
from svit_deploy.progress import show_progress

ARCH, RATIOS = "svit_adapter_s", "0.7,0.49,0.343"
SKIMAGE = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png")
SKLEARN = ("china.jpg", "flower.jpg")
HEAD_MACS_PER_ROI = 256 * 49 * 1024 + 1024 * 1024 + 1024 * 401
MASK_MACS_PER_ROI = 4 * 196 * 9 * 256**2 + 196 * 4 * 256**2 + 784 * 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backbone-sizes", default="640x640,800x1216")
    parser.add_argument("--detect-sizes", default="800x1216,800x1344")
    parser.add_argument("--seconds", type=float, default=20.0, help="per graph")
    parser.add_argument("--memory", type=Path, help="only: peak memory of one bundle")
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(peak_memory(options.memory, options.output / "photos", options.threads)))
        return
    output: Path = options.output
    photos = gather_photos(output / "photos")
    checkpoint = output / f"{ARCH}.pth"
    if not checkpoint.exists():
        api.init(ARCH, checkpoint)
    lines = []
    for task, sizes in (("backbone", options.backbone_sizes), ("detect", options.detect_sizes)):
        for size in filter(None, sizes.split(",")):
            report, targets = compare(checkpoint, photos, task, size, options)
            lines += rows(report, targets, task, size, options)
            (output / f"bench-{task}-{size}.json").write_text(json.dumps(report.to_dict()) + "\n")
    print("| task | pixels | graph | p50, ms | speed-up | FLOP ratio | kept | peak memory |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(lines))


def gather_photos(folder: Path) -> Path:
    """Copies the photographs into one folder, as RGB."""
    import skimage
    import sklearn
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    sources = [Path(skimage.__file__).parent / "data" / name for name in SKIMAGE]
    sources += [Path(sklearn.__file__).parent / "datasets" / "images" / name for name in SKLEARN]
    for source in sources:
        Image.fromarray(read_picture(source)).save(folder / f"{source.stem}.png")
    return folder


def compare(
    checkpoint: Path, photos: Path, task: str, size: str, options: argparse.Namespace
) -> tuple[BenchReport, list[Path]]:
    """Exports the dense twin, `dynamic` and `budget`, and times them interleaved."""
    targets = []
    modes = {"dense": {}, "dynamic": {"calibrate_gates": photos}}
    if task == "backbone":
        modes["budget"] = {"calibrate_gates": photos, "calibration": photos, "budget": "auto"}
    for mode, extra in modes.items():
        target = options.output / f"{task}-{size}-{mode}"
        if not target.exists():
            keep = {} if mode == "dense" else {"target_keep": RATIOS}
            common = {"task": task, "tokens": mode, "image_size": size, "batch": "1"}
            api.export(checkpoint, target, **common, **keep, **extra)
        targets.append(target)
    settings = BenchSettings(
        duration_s=options.seconds,
        min_samples=11,
        threads=options.threads,
        worst_case=False,
    )
    with show_progress() as progress:
        report = api.bench(targets, images=photos, settings=settings, progress=progress)
    render(report, Console(width=120))
    return report, targets


def rows(
    report: BenchReport,
    targets: list[Path],
    task: str,
    size: str,
    options: argparse.Namespace,
) -> list[str]:
    """A table's row per graph."""
    height, width = (int(side) for side in size.split("x"))
    lines = []
    for target, result in zip(targets, report.results, strict=True):
        config = open_bundle(target).config
        ratio = macs(config, (height, width), None) / macs(config, (height, width), result)
        speedup = "1" if result.speedup is None else f"**{result.speedup.ratio:.2f}x**"
        kept = "all" if result.kept is None else f"{result.kept.keep_ratio:.3f}"
        command = [sys.executable, __file__, "--output", str(options.output)]
        command += ["--threads", str(options.threads), "--memory", str(target)]
        measured = subprocess.run(command, check=True, capture_output=True, text=True)
        memory = json.loads(measured.stdout)["gib"]
        lines.append(
            f"| {task} | {size} | {target.name.rpartition('-')[2]} | {result.latency.p50_ms:.0f} | "
            f"{speedup} | {ratio:.2f} | {kept} | {memory:.1f} GiB |"
        )
    return lines


def peak_memory(target: Path, photos: Path, threads: int) -> dict[str, float]:
    """Largest resident memory of a process that runs one bundle on two images, one by one."""
    bundle = open_bundle(target)
    task = bundle.task
    images = Inputs(load_images(photos, limit=2)).prepare_for(task, bundle.config, bundle.sizes)
    graph = OnnxRuntimeEngine(bundle.model_path, threads=threads)
    with of_images_alone(graph, task) as engine:
        for image in images:
            engine.run({"images": image[None]}, task.outputs())
    # Not getrusage: a child's maximum there begins with its parent's.
    status = Path("/proc/self/status").read_text().splitlines()
    peak_kib = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    return {"gib": int(peak_kib) / 2**20}


def macs(config: ModelConfig, size: tuple[int, int], result: TargetResult | None) -> float:
    """Multiply-adds per image; without a result every token is computed and there are no gates."""
    adapter, settings = config.backbone, config.settings
    width, hidden, conv = config.embed_dim, config.mlp_dim, adapter.conv_dim
    cells = size[0] * size[1]
    tokens, pyramid = cells / 256, cells / 256 * 21 / 4
    computed = np.full(config.depth, tokens)
    total = 0.0
    if result is not None and result.kept is not None:
        computed[list(config.gate_blocks)] = result.kept.per_gate_mean
        total += config.num_gates * tokens * width * (width // 4)
    total += float((computed * (4 * width**2 + 2 * width * hidden)).sum())
    total += float((computed**2 * 2 * width).sum())
    total += tokens * 3 * 256 * width  # patches
    # Stem, three more convolutions, their projections, and the transposed convolution.
    total += cells / 4 * (27 * conv + 18 * conv**2) + cells / 64 * 18 * conv**2
    total += cells / 256 * 72 * conv**2 + cells / 1024 * 144 * conv**2
    total += width * conv * cells * (1 / 16 + 2 / 64 + 4 / 256 + 4 / 1024)
    total += cells / 16 * width**2
    samples = settings.deform_heads * adapter.deform_points
    interactions = len(settings.interaction_blocks)
    values = adapter.deform_dim * width
    total += interactions * (pyramid * values + tokens * (values + 9 * samples * width))
    extractor = tokens * values + pyramid * (values + 3 * samples * width)
    extractor += pyramid * adapter.ffn_dim * (2 * width + 9)
    total += (interactions + adapter.extra_extractors) * extractor
    if config.num_classes:
        maps = cells * (1 / 16 + 1 / 64 + 1 / 256 + 1 / 1024)
        total += maps * (256 * width + 2 * 9 * 256**2 + 15 * 256)
        total += 1000 * HEAD_MACS_PER_ROI + 100 * MASK_MACS_PER_ROI
    return total


if __name__ == "__main__":
    main()
