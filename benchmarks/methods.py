"""Every method on ONNX Runtime CPU against its dense twin, of the same weights and sizes.

Random weights from `svit-deploy init` at the published sizes and settings, batch 8, one thread, all
graphs in one interleaved run, of which the processor time is compared. Prints the speed-up beside
the ratio of multiply-adds, counted on the very graphs that are timed.

    python benchmarks/methods.py --output /tmp/methods
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from multiply_adds import multiply_adds
from processor_time import Run, measure, opened

from svit_deploy import api
from svit_deploy.bundle import open_bundle
from svit_deploy.engines.base import Engine
from svit_deploy.images import load_images, synthetic_images

BATCH, IMAGES = 8, 32


@dataclass(frozen=True)
class Case:
    """A preset, the preset of its dense twin if its own weights have none, and other settings."""

    preset: str
    twin: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.settings.get("family", self.preset)


TOME_LVVIT = {
    "family": "tome_lvvit",
    "r": "10",  # as many tokens in the mean over 16 blocks as 13 leave over the 12 of a DeiT
    "inflect": "0",
    "prop_attn": "true",
    "skip_lam": "2",
}
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
    Case("multiscale_s", "deit_small"),
    Case("multiscale_lvvit_s", "lvvit_s"),
    Case("lvvit_s", settings=TOME_LVVIT),
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
    cases = [case for case in CASES if not options.only or case.name in options.only]
    bundles = [bundle for case in cases for bundle in build(case, output, images)]
    times = timed(bundles, images, 2 * options.rounds)
    rows = []
    for number, case in enumerate(cases):
        dense, own = times[:, 2 * number], times[:, 2 * number + 1]
        ratio = count(bundles[2 * number], images) / count(bundles[2 * number + 1], images)
        speedup = float(np.median(dense / own))  # of runs beside each other
        rows.append(
            {
                "preset": case.name,
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


def timed(bundles: list[Path], images: Path, passes: int) -> np.ndarray:
    """Processor seconds of each run of each bundle `[passes, bundles]`."""
    with ExitStack() as stack:
        runs: list[Run] = []
        for bundle in bundles:
            engine, inputs = stack.enter_context(opened(bundle)), batch_of(bundle, images)
            runs.append(partial(run, engine, inputs))
        return measure(runs, passes)


def run(engine: Engine, inputs: np.ndarray, step: int) -> None:
    engine.run({"images": inputs}, ["logits"])


def batch_of(bundle: Path, images: Path) -> np.ndarray:
    config = open_bundle(bundle).config
    return load_images(images).inputs(config.preprocess, config.image_size)[:BATCH]


def build(case: Case, output: Path, images: Path) -> list[Path]:
    """The dense twin's bundle, then the method's."""
    bundles = [output / f"{case.twin or case.preset}-dense", output / f"{case.name}-own"]
    own = {"arch": case.preset, "overrides": case.settings}
    given = {"arch": case.twin or case.preset, "tokens": "dense"}
    for bundle, options in zip(bundles, (given, own), strict=True):
        checkpoint = output / f"{options['arch']}.safetensors"
        if not bundle.exists():
            api.init(options["arch"], checkpoint, force=True)
            api.export(checkpoint, bundle, calibration=images, batch="1:8:32", **options)
    return bundles


def count(bundle: Path, images: Path) -> float:
    """Multiply-adds per image of the batch that is timed."""
    return multiply_adds(open_bundle(bundle), [batch_of(bundle, images)])


def markdown(row: dict[str, float]) -> str:
    return (
        f"| {row['preset']} | {row['dense_s'] * 1e3:.0f} ms | {row['reduced_s'] * 1e3:.0f} ms "
        f"| **{row['speedup']:.2f}x** ({row['least']:.2f}-{row['most']:.2f}) "
        f"| {row['flop_ratio']:.2f}x | {row['reached']:.0%} |"
    )


if __name__ == "__main__":
    main()
