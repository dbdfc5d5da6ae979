"""What each kind of operator takes at batch 1, on a machine that others use, too.

Of each operator and each image it takes the fastest of many runs, under the profiler that `bench
--profile-layers` reads; runs of the two bundles alternate. Prints the table of docs/speed.md.

    python benchmarks/operators.py --bundles /tmp/svit_s
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime

from svit_deploy.bundle import open_bundle
from svit_deploy.engines.onnxruntime_profile import WARM_UP, Key, read_runs
from svit_deploy.graph.parts import BETWEEN, KINDS, kind_of
from svit_deploy.images import load_images

NAMES = ("dense", "dynamic")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundles", type=Path, required=True, help="output of svit_s.py")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=16, help="runs of each image")
    parser.add_argument("--limit", type=float, default=1.56, help="the FLOP limit of the speed-up")
    options = parser.parse_args()
    bundles = {name: open_bundle(options.bundles / name) for name in NAMES}
    pictures = load_images(options.bundles / "images.npz")
    config = bundles["dense"].config
    images = pictures.inputs(config.preprocess, config.image_size)
    best: dict[str, dict[tuple[int, Key], float]] = {name: {} for name in NAMES}
    for _ in range(options.rounds):
        for name, bundle in bundles.items():
            for number, run in enumerate(traced(bundle.model_path, images, options.threads)):
                for key, seconds in run.items():
                    known = best[name].get((number, key), seconds)
                    best[name][number, key] = min(known, seconds)
    print("\n".join(table(best, len(images), options.limit)))


def traced(model: Path, images: np.ndarray, threads: int) -> Iterator[dict[Key, float]]:
    """Seconds of each operator, image by image."""
    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads, options.enable_mem_pattern = 1, False
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/run"
        session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
        for number in (*[0] * WARM_UP, *range(len(images))):
            session.run(["logits"], {"images": images[number : number + 1]})
        yield from read_runs(Path(session.end_profiling()).read_text("utf-8"))[WARM_UP:]


def table(
    best: dict[str, dict[tuple[int, Key], float]], images: int, limit: float
) -> Iterator[str]:
    """Milliseconds by kind of operator, and how many operators there are."""
    spent: dict[str, Any] = {}
    operators: dict[str, Counter[str]] = {}
    for name, times in best.items():
        by_kind: defaultdict[str, float] = defaultdict(float)
        found = {key: kind_of([key[0]] if key[0] else [], key[1]) for _, key in times}
        for (_, key), seconds in times.items():
            by_kind[found[key]] += seconds * 1e3 / images
        counted = [kind for kind in found.values() if kind != BETWEEN]
        spent[name], operators[name] = by_kind, Counter(counted)
        spent[name]["total"], operators[name]["total"] = sum(by_kind.values()), len(counted)
    yield f"| kind | `dense` | that / {limit} | `dynamic` | too much | operators |"
    yield "|---|---|---|---|---|---|"
    for kind in (*KINDS, "total"):
        dense, dynamic = (spent[name][kind] for name in NAMES)
        if not dense and not dynamic:
            continue
        counts = ", ".join(str(operators[name][kind]) for name in NAMES)
        yield (
            f"| {kind} | {dense:.2f} | {dense / limit:.2f} | {dynamic:.2f} "
            f"| {dynamic - dense / limit:+.2f} | {counts} |"
        )


if __name__ == "__main__":
    main()
