"""Safetensors files whose header says something else than they hold, or something absurd."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.kinds.checkpoints import MADE
from tests.fuzz.sound import Sound
from tests.fuzz.values import NUMBERS, TEXTS, odd_bytes, odd_tree

DTYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F4",
    "C64",
    "X",
    "",
    "f32",
]
LENGTHS = [0, 1, 7, 100_000_001, 2**31, 2**63, 2**64 - 1]


def make(rng: random.Random, folder: Path, sound: Sound) -> Sequence[Any]:
    family, task = rng.choice(MADE)
    weights = sound.weights(family, task)
    change = rng.choice(
        [_odd_header, _odd_header, _honest_shapes, _honest_shapes, _damaged, _odd_length]
    )
    (folder / "w.safetensors").write_bytes(change(rng, weights))
    if rng.random() < 0.6:
        return ["inspect", "w.safetensors"]
    return [
        "export",
        "w.safetensors",
        *sound.options(family, task),
        *sound.sizes(task),
        "-o",
        "out",
    ]


def _parts(weights: dict[str, np.ndarray]) -> tuple[dict[str, Any], bytes]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in weights.items():
        end = len(data) + array.nbytes
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [len(data), end],
        }
        data += array.astype("<f4").tobytes()
    return header, data


def _joined(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def _odd_header(rng: random.Random, weights: dict[str, np.ndarray]) -> bytes:
    header, data = _parts(weights)
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice(list(weights))
        entry = header.get(name)
        if not isinstance(entry, dict) or rng.random() < 0.2:
            header = odd_tree(rng, header)
            break
        start, end = entry["data_offsets"]
        numbers = [n for n in NUMBERS if isinstance(n, int)]
        entry.update(
            rng.choice(
                [
                    {"dtype": rng.choice(DTYPES)},
                    {
                        "shape": [
                            rng.choice(numbers) for _ in range(rng.choice([0, 1, 2, 4, 33, 70]))
                        ]
                    },
                    {"shape": [0, *entry["shape"]]},
                    {"shape": [1] * rng.choice([10, 32, 33, 64, 65, 1000]) + entry["shape"]},
                    {"shape": [2**32, 2**32, 0]},
                    {"data_offsets": [end, start]},
                    {"data_offsets": [start, rng.choice(numbers)]},
                    {"data_offsets": [rng.choice(numbers), end]},
                    {"data_offsets": [0, end]},
                    {"extra": rng.choice(TEXTS)},
                    {"shape": odd_tree(rng, entry["shape"])},
                ]
            )
        )
    if rng.random() < 0.1 and isinstance(header, dict):
        header["__metadata__"] = rng.choice([[], 7, {"a": 7}, {"a": "\x1b" * 100}, {"a": {}}, None])
    return _joined(header, data)


def _honest_shapes(rng: random.Random, weights: dict[str, np.ndarray]) -> bytes:
    """A sound file, of tensors of shapes, types and names that no model has."""
    changed = dict(weights)
    for name in rng.sample(list(weights), rng.choice([1, 1, 2, 4, min(30, len(weights))])):
        array = changed.pop(name)
        shape = list(array.shape) or [1]
        place = rng.randrange(len(shape))
        shape[place] = rng.choice(
            [0, 1, 2, shape[place] + 1, max(shape[place] - 1, 0), 3 * shape[place]]
        )
        other = rng.choice(
            [
                np.zeros(shape, np.float32),
                np.zeros(shape, np.float32),
                np.zeros(
                    rng.choice([(), (0,), (1,), (1,) * 30, (10**12, 0), (1, 1, 1, 1)]), np.float32
                ),
                array[None],
                array.reshape(-1),
                array.T,
                np.full_like(array, rng.choice([np.nan, np.inf, 3e38, 0])),
            ]
        )
        if rng.random() < 0.2:
            name = rng.choice([*TEXTS, name + ".x", "module." + name])
            name = name.encode("utf-8", "replace").decode()
        if rng.random() < 0.9:
            changed[name] = other
    return _joined(*_parts(changed))


def _damaged(rng: random.Random, weights: dict[str, np.ndarray]) -> bytes:
    header, data = _parts(weights)
    content = _joined(header, data)
    if rng.random() < 0.5:  # the header alone: the data is much longer
        end = 8 + int.from_bytes(content[:8], "little")
        return odd_bytes(rng, content[:end]) + content[end:]
    return odd_bytes(rng, content)


def _odd_length(rng: random.Random, weights: dict[str, np.ndarray]) -> bytes:
    content = _joined(*_parts(weights))
    length = int.from_bytes(content[:8], "little")
    wrong = rng.choice([*LENGTHS, length - 1, length + 1, length + 1000, rng.getrandbits(64)])
    return wrong.to_bytes(8, "little") + content[8:]
