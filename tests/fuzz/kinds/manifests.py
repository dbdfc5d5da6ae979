"""Bundles whose manifest says something else than was written."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svit_deploy.methods.families import FAMILIES
from tests.fuzz.sound import QUICK, Sound
from tests.fuzz.values import odd_bytes, odd_tree

MADE = [
    (family.name, task, mode.value)
    for family in FAMILIES.values()
    for task in family.backbone.tasks
    for mode in family.modes
]


# Those that run in half a second and those that take several.
WEIGHTS = [0.2 if task == "detect" or "swin" in family or "stvitr" in family else 1
           for family, task, _ in MADE]  # fmt: skip


def pick(rng: random.Random) -> tuple[str, str, str]:
    """A family, a task and a token mode."""
    return rng.choices(MADE, WEIGHTS)[0]


def make(rng: random.Random, folder: Path, sound: Sound) -> Sequence[Any]:
    family, task, mode = pick(rng)
    bundle = sound.copy(sound.bundle(family, task, mode), folder)
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change = rng.random()
    if change < 0.55:  # most of what decides is in here
        part = rng.choice(
            ["model", "model", "tokens", "gates", "batch", "image", "reference", "files"]
        )
        if part in manifest:
            manifest[part] = odd_tree(rng, manifest[part])
        content = json.dumps(manifest).encode()
    elif change < 0.85:
        content = json.dumps(odd_tree(rng, manifest)).encode()
    elif change < 0.9:
        content = json.dumps(manifest).encode() + rng.choice([b" " * 5 * 2**20, b"{}", b"\x00"])
    else:
        content = odd_bytes(rng, path.read_bytes())
    path.write_bytes(content)
    return command(rng, sound, bundle.name, family, task)


def command(rng: random.Random, sound: Sound, bundle: str, family: str, task: str) -> Sequence[Any]:
    """Something that reads a bundle."""
    images = sound.photos() if task == "detect" else sound.images()
    options = sound.options(family, task)
    export = ["export", sound.checkpoint(family, task), *options, *sound.sizes(task)]
    commands: list[Sequence[Any]] = [
        ["inspect", bundle],
        ["inspect", bundle, "--json", "out"],
        ["verify", bundle, "--repeats", "2"],
        ["verify", bundle, "--repeats", "2", "--against", sound.checkpoint(family, task), *options],
        ["bench", bundle, "--random", "--allow-noise", *QUICK],
        [*export, "-o", bundle, "--force"],
    ]
    if task == "detect":
        commands.append(["predict", bundle, images, "-o", "out"])
    if task == "classify":
        commands.append(["visualize", bundle, "--images", images, "-o", "out"])
        commands.append(["predict", bundle, images, "-o", "out.jsonl"])
        commands.append(["evaluate", bundle, "--images", images])
    weights = [4, 1, 2, 1, 2, 1] + [2] * (len(commands) - 6)
    return rng.choices(commands, weights)[0]
