"""COCO's annotation files, with every part of them missing, odd or contradictory."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fuzz.sound import Sound
from tests.fuzz.values import odd_bytes, odd_tree


def make(rng: random.Random, folder: Path, sound: Sound) -> Sequence[Any]:
    tree: Any = sound.annotations()
    part = rng.choice([None, "images", "annotations", "annotations", "categories"])
    if part is None:
        tree = odd_tree(rng, tree)
    else:
        tree[part] = odd_tree(rng, tree[part])
    content = json.dumps(tree).encode()
    if rng.random() < 0.15:
        content = odd_bytes(rng, content)
    (folder / "coco.json").write_bytes(content)
    bundle, checkpoint = (
        make("svit_adapter", "detect") for make in (sound.bundle, sound.checkpoint)
    )
    photos, annotations = sound.photos(), ["--annotations", "coco.json"]
    options = sound.options("svit_adapter", "detect")
    commands: list[Sequence[Any]] = [
        ["evaluate", bundle, "--images", photos, *annotations],
        ["predict", bundle, photos, "-o", "out.json", *annotations],
        ["verify", bundle, "--against", checkpoint, *options, "--images", photos, *annotations],
    ]
    return rng.choices(commands, [5, 4, 1])[0]
