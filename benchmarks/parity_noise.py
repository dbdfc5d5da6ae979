"""Rounding noise of correct exports: what the limits of `verify` must let through.

Prints, for each model and token mode, the largest errors over image sets, batch sizes and thread
counts, each in the unit of its limit in `svit_deploy.verify.limits`. Needs the repository: it reads
the golden checkpoints of the tests and the toy model.

    python benchmarks/parity_noise.py                # all models, about ten minutes on two cores
    python benchmarks/parity_noise.py svit_cls deit  # only these
    python benchmarks/parity_noise.py --precision fp16
"""

from __future__ import annotations

import argparse
import itertools
import json
import runpy
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from svit_deploy.errors import UsageError
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.images import ImageSet, load_images, synthetic_images
from svit_deploy.loading.load import load_model
from svit_deploy.loading.random import init_checkpoint
from svit_deploy.machine.environment import cpu_model, installed_versions
from svit_deploy.model.config import TokenMode
from svit_deploy.model.model import Model
from svit_deploy.verify.expected import LiveReference
from svit_deploy.verify.report import VerifyReport
from svit_deploy.verify.run import verify_against
from svit_deploy.verify.settings import VerifySettings

ROOT = Path(__file__).parent.parent
GOLDEN, DIGITS = ROOT / "tests" / "data" / "golden", ROOT / "examples" / "digits"
CHECKPOINT_OF = runpy.run_path(str(ROOT / "tests" / "told.py"))["checkpoint_of"]
MODELS = ("svit_cls", "svit_cls_224", "svit_cls_empty_gate", "deit", "deit_distilled", "digits")
LARGE = ("svit_s", "svit_s outliers", "deit_small")
MODES = {"dynamic": None, "budget 1.0": "1.0", "budget 0.5": "0.5", "masked": None, "dense": None}
# What is measured, and the limit that it is held against.
COLUMNS = {
    "embedding": "embedding",
    "block": "block",
    "gate": "margin",
    "head": "head",
    "drift": "rounding",
    "logits": "logits",
}
BATCHES, THREADS = (1, 3, 16), (1, 2)


def load(name: str, folder: Path) -> tuple[Model, list[ImageSet]]:
    """A model and the image sets to run it on."""
    if name == "digits":
        model = load_model(DIGITS / "svit_digits.pth", arch=str(DIGITS / "arch.yaml"))
        return model, [load_images(DIGITS / "heldout.npz")]
    if name in LARGE:
        arch = name.split()[0]
        path = init_checkpoint(arch, folder / f"{arch}.safetensors").path
        model = load_model(path, arch=arch)
        if "outliers" in name:
            # As in many trained models: two channels far larger than all others, from block 2 on.
            bias = model.weights["blocks.2.mlp.fc2.bias"].copy()
            bias[:2] = 200, -150
            model = replace(model, weights={**model.weights, "blocks.2.mlp.fc2.bias": bias})
        return model, [synthetic_images(8, (224, 224))]
    meta = json.loads((GOLDEN / name / "meta.json").read_text())
    heads = {"num_heads": str(meta["config"]["num_heads"])}
    model = load_model(CHECKPOINT_OF(name), overrides=heads)
    inputs = np.load(GOLDEN / name / "io.npz")["input"]
    names = tuple(map(str, range(len(inputs))))
    recorded = ImageSet(inputs, names, None, "0" * 64, "npz")
    return model, [recorded, synthetic_images(16, model.config.image_size)]


def reports(
    model: Model, images: list[ImageSet], mode: str, precision: str, folder: Path
) -> Iterator[VerifyReport]:
    """Verifies one export on every image set, in every batch size and thread count."""
    settings = ExportSettings(
        tokens=TokenMode(mode.split()[0]), budget=MODES[mode], precision=precision
    )
    bundle = export_model(model, folder, settings)
    for image_set, batch, threads in itertools.product(images, BATCHES, THREADS):
        reference = LiveReference(bundle, model, image_set, together=batch)
        yield verify_against(bundle, reference, VerifySettings(threads=threads, repeats=2))


def measure(name: str, mode: str, precision: str) -> str:
    """One line of the table."""
    largest = dict.fromkeys(COLUMNS, 0.0)
    decisions = flips = runs = 0
    with tempfile.TemporaryDirectory() as folder:
        model, images = load(name, Path(folder))
        for report in reports(model, images, mode, precision, Path(folder) / "bundle"):
            if not report.passed:
                print(report.verdict)
            runs += 1
            limits = report.limits
            seen = [(stage.name.split()[0], stage.error) for stage in report.stages]
            seen = [(key, error) for key, error in seen if key != "gate"]
            for stage in report.stages:
                if stage.name.startswith("gate"):
                    seen.append(("gate", stage.error / stage.limit * limits.margin))
            for gate in report.gates:
                seen.append(("drift", gate.drift / gate.rounding * limits.rounding))
                decisions += gate.flips.tokens
                flips += gate.flips.flips + gate.flips.consequences
            seen.append(("logits", report.results["logits_error"] or 0.0))
            for key, error in seen:
                largest[key] = max(largest[key], error)
    errors = " | ".join(f"{error:.1e}" if error else "-" for error in largest.values())
    return f"| {name} | {mode} | {runs} | {errors} | {flips} of {decisions} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[*MODELS, *LARGE])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "bf16"])
    arguments = parser.parse_args()
    versions = installed_versions()
    print(f"{cpu_model()}; " + ", ".join(f"{k} {versions[k]}" for k in sorted(versions)))
    print(f"| model | mode | runs | {' | '.join(COLUMNS.values())} | decisions that differ |")
    print("|---" * (4 + len(COLUMNS)) + "|")
    for name, mode in itertools.product(arguments.models, MODES):
        try:
            print(measure(name, mode, arguments.precision), flush=True)
        except UsageError:  # a model without gates has one mode only
            continue


if __name__ == "__main__":
    main()
