"""What each kind of operator takes in two bundles, on a machine that others use, too.

Of each operator and each batch of images it takes the fastest of many runs, under the profiler that
`bench --profile-layers` reads; runs of the two alternate. Prints the tables of docs/speed.md and
docs/methods.md.

    python benchmarks/operators.py --bundles /tmp/svit_s
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime

from svit_deploy.bundle import open_bundle
from svit_deploy.engines.onnxruntime_profile import WARM_UP, Key, read_runs
from svit_deploy.graph.parts import BETWEEN, KINDS, kind_of
from svit_deploy.images import load_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--bundles", type=Path, required=True, help="output of svit_s.py or methods.py"
    )
    parser.add_argument("--names", nargs=2, default=("dense", "dynamic"), help="two in it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--images", type=int, help="only the first")
    parser.add_argument("--rounds", type=int, default=16, help="runs of each batch")
    parser.add_argument("--limit", type=float, default=1.56, help="the FLOP limit of the speed-up")
    options = parser.parse_args()
    bundles = {name: open_bundle(options.bundles / name) for name in options.names}
    pictures = load_images(options.bundles / "images.npz")
    config = bundles[options.names[0]].config
    images = pictures.inputs(config.preprocess, config.image_size)[: options.images]
    batches = [images[i : i + options.batch] for i in range(0, len(images), options.batch)]
    best: dict[str, dict[tuple[int, Key], float]] = {name: {} for name in options.names}
    for _ in range(options.rounds):
        for name, bundle in bundles.items():
            for number, run in enumerate(traced(bundle.model_path, batches, options.threads)):
                for key, seconds in run.items():
                    known = best[name].get((number, key), seconds)
                    best[name][number, key] = min(known, seconds)
    print("\n".join(table(best, options.batch, len(batches), options.limit)))


def traced(model: Path, batches: Sequence[np.ndarray], threads: int) -> Iterator[dict[Key, float]]:
    """Seconds of each operator, batch by batch."""
    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads, options.enable_mem_pattern = 1, False
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/run"
        session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
        for batch in (*[batches[0]] * WARM_UP, *batches):
            session.run(["logits"], {"images": batch})
        yield from read_runs(Path(session.end_profiling()).read_text("utf-8"))[WARM_UP:]


def table(
    best: dict[str, dict[tuple[int, Key], float]], batch: int, batches: int, limit: float
) -> Iterator[str]:
    """Milliseconds by kind of operator, and how many operators there are."""
    spent: dict[str, Any] = {}
    operators: dict[str, Counter[str]] = {}
    for name, times in best.items():
        by_kind: defaultdict[str, float] = defaultdict(float)
        found = {key: kind_of([key[0]] if key[0] else [], key[1]) for _, key in times}
        for (_, key), seconds in times.items():
            by_kind[found[key]] += seconds * 1e3 / batches
        counted = [kind for kind in found.values() if kind != BETWEEN]
        spent[name], operators[name] = by_kind, Counter(counted)
        spent[name]["total"], operators[name]["total"] = sum(by_kind.values()), len(counted)
    dense_name, name = best
    yield (
        f"| kind at batch {batch} | `{dense_name}` | that / {limit} | `{name}` | too much "
        "| operators |"
    )
    yield "|---|---|---|---|---|---|"
    for kind in (*KINDS, "total"):
        dense, own = (spent[name][kind] for name in best)
        if not dense and not own:
            continue
        counts = ", ".join(str(operators[name][kind]) for name in best)
        yield (
            f"| {kind} | {dense:.2f} | {dense / limit:.2f} | {own:.2f} "
            f"| {own - dense / limit:+.2f} | {counts} |"
        )


if __name__ == "__main__":
    main()
