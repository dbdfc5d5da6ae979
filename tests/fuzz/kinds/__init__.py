"""What is damaged, one module a kind of file: each makes the files of a case and its command."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.kinds import (
    checkpoints,
    coco,
    graphs,
    labels,
    manifests,
    npz,
    pictures,
    safetensors,
    settings,
    torch_files,
)
from tests.fuzz.oracle import MAX_GROWTH
from tests.fuzz.sound import Sound

Make = Callable[[random.Random, Path, Sound], Sequence[Any]]
"""Writes a case's files into its folder and returns the command line that reads them."""


@dataclass(frozen=True)
class Kind:
    """`share` is of all cases; `max_growth` as in `complaint`."""

    make: Make
    share: float
    max_growth: int | None = MAX_GROWTH


KINDS = {
    "torch": Kind(torch_files.make, 0.20),
    "checkpoint": Kind(checkpoints.make, 0.12),
    "safetensors": Kind(safetensors.make, 0.16),
    "graph": Kind(graphs.make, 0.08, max_growth=None),
    "manifest": Kind(manifests.make, 0.12),
    "npz": Kind(npz.make, 0.06),
    "settings": Kind(settings.make, 0.13),
    # Pillow's limit is 89 million pixels, a gigabyte while they are decoded, by two threads.
    "picture": Kind(pictures.make, 0.05, max_growth=3 * 2**30),
    "labels": Kind(labels.make, 0.06),
    "coco": Kind(coco.make, 0.02),
}
