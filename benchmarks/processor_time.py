"""Processor time of graphs that take turns: other programs on the machine hardly change it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from svit_deploy.bench.whole import of_images_alone
from svit_deploy.bundle import open_bundle
from svit_deploy.engines.base import Engine
from svit_deploy.engines.settings import RunSettings
from svit_deploy.inference.engine import open_bundle_engine

Run = Callable[[int], object]
"""Runs one graph on the images of a pass."""


def measure(runs: Sequence[Run], passes: int, kept: Path | None = None) -> np.ndarray:
    """Seconds of this process `[passes, graphs]`; every second pass is in reverse order.

    Args:
        kept: a file of the passes so far; those in it are not run again.
    """
    done: list[list[float]] = []
    if kept is not None and kept.exists():
        done = json.loads(kept.read_text())
    if len(done) < passes:
        for run in runs:
            run(0)
    for step in range(len(done), passes):
        times = [0.0] * len(runs)
        for number in range(len(runs))[:: -1 if step % 2 else 1]:
            start = time.process_time()
            runs[number](step)
            times[number] = time.process_time() - start
        done.append(times)
        if kept is not None:
            kept.write_text(json.dumps(done) + "\n")
    return np.array(done)


def opened(target: Path) -> Engine:
    """A bundle, as `PATH[@ENGINE[:PRECISION]]`, that is given images alone and has one thread."""
    name, _, asked = target.name.partition("@")
    engine, _, precision = asked.partition(":")
    bundle = open_bundle(target.with_name(name))
    settings = RunSettings(engine=engine or None, engine_precision=precision or None, threads=1)
    return of_images_alone(open_bundle_engine(bundle, settings), bundle.task)
