"""SViT-S on an NVIDIA GPU: every runtime that is there, verified and measured; docs/gpu.md's table.

Random weights from `svit-deploy init`, which keep the paper's shares of tokens, and painted
pictures: what is measured is the machine. A step that fails is a line that says why, and the
others go on.

    python benchmarks/gpu.py --output build/gpu --page docs/gpu.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from svit_deploy import api
from svit_deploy.bench.report import BenchReport, TargetResult
from svit_deploy.engines.onnxruntime import require_provider
from svit_deploy.engines.tensorrt.gpu import require_gpu
from svit_deploy.engines.tensorrt.sidecar import read_sidecar
from svit_deploy.errors import SvitDeployError
from svit_deploy.machine.environment import installed_versions
from svit_deploy.machine.tensorrt import TARGETS, load_library
from svit_deploy.plugins import library_path

BEGIN, END = "<!-- written by benchmarks/gpu.py -->", "<!-- end of what it wrote -->"
PROVIDERS = ("cuda", "tensorrt", "nv-tensorrt-rtx")
RATIOS = "0.7,0.49,0.343"
GRAPHS: dict[str, dict[str, Any]] = {
    "dense": {"tokens": "dense"},
    "budget": {"tokens": "budget", "budget": "auto"},
    "dynamic": {"tokens": "dynamic", "plugins": True},
}
"""The dense twin first: it is the baseline."""
HEADINGS = (
    *("runtime", "precision", "graph", "batch", "verify", "host to host, ms", "speed-up"),
    *("on the GPU, ms", "speed-up of that", "images/s, one run", "in flight", "CUDA graph"),
)


@dataclass(frozen=True)
class Way:
    """A way to run a graph: an engine of a TensorRT, or a provider of ONNX Runtime."""

    target: str | None = None
    provider: str | None = None

    @property
    def name(self) -> str:
        return self.target or f"ONNX Runtime, {self.provider}"


@dataclass(frozen=True)
class Row:
    """A line of the table; what is not known is empty."""

    cells: tuple[str, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--page", type=Path, help="where the table goes between its marks")
    parser.add_argument("--arch", default="svit_s")
    parser.add_argument("--precisions", default="fp32,fp16,int8,fp8")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=3.0, help="per graph and batch size")
    parser.add_argument("--device", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        gpu, versions = require_gpu(options.device)
    except SvitDeployError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    rows, answers, refused = measure(output, options)
    packages = ", ".join(f"{name} {version}" for name, version in installed_versions().items())
    text = "\n".join(
        [
            f"{gpu.name} ({gpu.sm}), driver for CUDA {versions.driver}; {packages}.",
            "",
            *table(rows),
            "",
            *(f"- {line}" for line in (*answers, *refused)),
        ]
    )
    (output / "gpu.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    (output / "gpu.md").write_text(text + "\n")
    if options.page:
        options.page.write_text(put_between(options.page.read_text(), text))
    print(text)
    return 0


def ways(device: int) -> tuple[list[Way], list[str]]:
    """What runs on a GPU, and of what does not, why."""
    found, refused = [], []
    for target in TARGETS:
        try:
            load_library(target)
            found.append(Way(target=target))
        except SvitDeployError as error:
            refused.append(f"{target}: {error.message}")
    for provider in PROVIDERS:
        try:
            require_provider(provider, device)
            found.append(Way(provider=provider))
        except SvitDeployError as error:
            refused.append(f"provider {provider}: {error.message}")
    return found, refused


def measure(output: Path, options: argparse.Namespace) -> tuple[list[Row], list[str], list[str]]:
    """The rows, what the engines' sidecars answer, and what could not be done."""
    pictures = paint(output / "pictures", 64)
    checkpoint = output / f"{Path(options.arch).stem}.pth"
    api.init(options.arch, checkpoint, keep_ratio=RATIOS, force=True)
    found, refused = ways(options.device)
    rows: list[Row] = []
    answers: list[str] = []
    for precision in options.precisions.split(","):
        graphs = {
            name: api.export(
                checkpoint, output / f"{name}-{precision}", calibration=pictures, batch="1:8:32",
                arch=options.arch, precision=precision, force=True, **told,
            ).path
            for name, told in GRAPHS.items()
        }  # fmt: skip
        for way in found:
            built = dict(built_for(way, graphs, output, options.device, refused, answers))
            verdicts = {name: verdict(path, way, options.device) for name, path in built.items()}
            try:
                report = bench(built, way, pictures, options)
            except SvitDeployError as error:
                refused.append(f"{way.name}, {precision}: {error.message}")
                continue
            rows += rows_of(report, way, precision, verdicts)
    return rows, answers, refused


def built_for(
    way: Way,
    graphs: dict[str, Path],
    output: Path,
    device: int,
    refused: list[str],
    answers: list[str],
) -> Iterator[tuple[str, Path]]:
    """The bundles that a way runs, by graph; engines are built of their graphs."""
    for name, path in graphs.items():
        if way.target is None:
            yield name, path
            continue
        try:
            if name == "dynamic":
                library_path()
            folder = output / f"{path.name}-{way.target}"
            bundle = api.export(path, folder, target=way.target, device=device, force=True)
        except SvitDeployError as error:
            refused.append(f"{way.name}, {path.name}: {error.message}")
            continue
        assert bundle.engine_path is not None
        told = read_sidecar(bundle.engine_path).settings
        if name == "dynamic":
            answers.append(
                f"{way.name}, {path.name}: {told['packed_blocks']} blocks attend without padding; "
                f"plugins as {told['plugin_form']}"
            )
        yield name, bundle.path


def verdict(path: Path, way: Way, device: int) -> str:
    """What `verify` says of a bundle, in one word or the sentence why not."""
    try:
        report = api.verify(path, provider=way.provider, device=str(device))
    except SvitDeployError as error:
        return error.message
    return "passed" if report.passed else report.verdict


def bench(
    built: dict[str, Path], way: Way, pictures: Path, options: argparse.Namespace
) -> BenchReport:
    return api.bench(
        list(built.values()), images=pictures, provider=way.provider, batches=options.batches,
        duration_s=options.seconds, worst_case=False, device=str(options.device),
    )  # fmt: skip


def rows_of(
    report: BenchReport, way: Way, precision: str, verdicts: dict[str, str]
) -> Iterator[Row]:
    names = list(verdicts)
    labels = list(dict.fromkeys(result.label for result in report.results))
    for result in report.results:
        name = names[labels.index(result.label)]
        yield Row((way.name, precision, name, str(result.batch), verdicts[name], *figures(result)))


def figures(result: TargetResult) -> tuple[str, ...]:
    """The columns that are measured."""
    gpu, flight = result.gpu, result.in_flight

    def ratio(interval: Any) -> str:
        if interval is None:
            return ""
        return f"{interval.ratio:.2f} [{interval.low:.2f}-{interval.high:.2f}]"

    return (
        f"{result.latency.p50_ms:.3f}",
        ratio(result.speedup),
        f"{gpu.gpu.p50_ms:.3f}" if gpu else "",
        ratio(gpu.speedup) if gpu else "",
        f"{result.throughput_images_per_s:.0f}",
        f"{flight.images_per_s:.0f} ({flight.runs_in_flight})" if flight else "",
        ("yes" if gpu.graph else "no") if gpu else "",
    )


def table(rows: Sequence[Row]) -> list[str]:
    lines = [HEADINGS, ("---",) * len(HEADINGS), *(row.cells for row in rows)]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]


def put_between(page: str, text: str) -> str:
    """A page with another text between its marks.

    Raises:
        ValueError: it has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def paint(folder: Path, count: int) -> Path:
    """Pictures of blots of all sizes: contents that differ in what is worth keeping."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(count):
        side = 2 ** (2 + number % 6)
        blots = random.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(blots).resize((256, 256), Image.Resampling.BICUBIC).save(
            folder / f"{number:03d}.png"
        )
    return folder


if __name__ == "__main__":
    sys.exit(main())
