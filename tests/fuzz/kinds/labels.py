"""Labels of images, names of classes, lists of pictures: files that do not fit or are none."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.kinds.npz import odd_npz
from tests.fuzz.sound import CLASSES, Sound
from tests.fuzz.values import TEXTS, odd_bytes, odd_tree

LABELS = ["0", "1", "4", "5", "-1", "9" * 30, "9" * 5000, "1.0", "1e3", " 2 ", "0x1", "\u0663",
          "1_0", "+1", "True", "", "nan", *TEXTS]  # fmt: skip
LINES = ["{label}", "{name} {label}", "{name},{label}", "{name}\t{label}", "{name},{label},{label}",
         "{name}", ",{label}", "{label},{name}", "# {label}", "{name}  {label}"]  # fmt: skip


def make(rng: random.Random, folder: Path, sound: Sound) -> Sequence[Any]:
    change = rng.random()
    if change < 0.25:
        return _class_names(rng, folder, sound)
    if change < 0.4:
        shutil.copytree(sound.photos(), folder / "photos")
        (folder / "list.txt").write_bytes(_odd_list(rng))
        return ["predict", sound.bundle(), "list.txt", "-o", "out.csv"]
    images, names = rng.choice(
        [
            (sound.images(), [f"images-{i:05d}" for i in range(3)]),
            (sound.photos(), ["across.png", "upright.png"]),
        ]
    )
    suffix = rng.choice([".txt", ".txt", ".csv", ".npy", ".npz", ""])
    path = folder / f"labels{suffix}"
    if suffix == ".npz":
        path.write_bytes(odd_npz(rng, {"labels": np.arange(len(names))}))
    elif suffix == ".npy":
        path.write_bytes(_odd_npy(rng, len(names)))
    else:
        path.write_bytes(_odd_text(rng, names))
    against = ["--against", sound.checkpoint(), *sound.options()]
    command = rng.choice([["evaluate", sound.bundle()], ["verify", sound.bundle(), *against]])
    return [*command, "--images", images, "--labels", path.name]


def _class_names(rng: random.Random, folder: Path, sound: Sound) -> Sequence[Any]:
    names: Any = [f"n0000000{i} class {i}" for i in range(CLASSES)]
    if rng.random() < 0.5:
        path = folder / "names.json"
        tree = rng.choice([names, dict(enumerate(names)), {n: i for i, n in enumerate(names)}])
        content = json.dumps(odd_tree(rng, tree)).encode()
    else:
        path = folder / "names.txt"
        lines = [rng.choice([name, name, name, *TEXTS]) for name in names]
        content = "\n".join(lines).encode("utf-8", "surrogatepass")
    path.write_bytes(odd_bytes(rng, content) if rng.random() < 0.3 else content)
    command = ["predict", sound.bundle(), sound.images(), "-o", "out.jsonl"]
    return [*command, "--class-names", path.name]


def _odd_list(rng: random.Random) -> bytes:
    lines = ["photos/across.png", "photos/upright.png"]
    for _ in range(rng.choice([1, 1, 2])):
        other = [*TEXTS, lines[0], "../secret", "list.txt", ".", "photos", "/dev/zero"]
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(other))
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    return odd_bytes(rng, content) if rng.random() < 0.2 else content


def _odd_text(rng: random.Random, names: list[str]) -> bytes:
    line = rng.choice(LINES)
    count = rng.choice([len(names)] * 6 + [0, 1, 100, 50_000])
    lines = [line.format(name=names[i % len(names)], label=str(i % 5)) for i in range(count)]
    for _ in range(rng.choice([0, 1, 1, 2])):
        if lines:
            label = rng.choice(LABELS)
            lines[rng.randrange(len(lines))] = rng.choice(LINES).format(
                name=rng.choice(names), label=label
            )
    text = rng.choice(["\n", "\n", "\r\n", "\r", "\n\n", "\x0b", "\u2028"]).join(lines)
    encoding = rng.choice(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16"])
    content = text.encode(encoding, "surrogatepass")
    return odd_bytes(rng, content) if rng.random() < 0.2 else content


def _odd_npy(rng: random.Random, count: int) -> bytes:
    buffer = io.BytesIO()
    dtype = rng.choice(
        ["i8", "u1", "i1", "u8", "f4", "bool", "S3", "U3", "O", "c8", "M8[s]", ">i4"]
    )
    values = np.array(rng.choice([[0, 1, 2, 3], [-1, 0, 1, 2], [200, 1, 2, 3], [7] * 4])[:count])
    np.save(buffer, values.astype(dtype), allow_pickle=True)
    return odd_bytes(rng, buffer.getvalue()) if rng.random() < 0.4 else buffer.getvalue()
