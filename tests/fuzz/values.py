"""Odd values, and odd changes of JSON-like trees and of bytes."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

NUMBERS = [0, -1, 1, 2, 7, 255, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 10**17, -(10**17),
           2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 0.5, -0.5, 1e-300, 1e300, 1e308 * 10,
           -1e308 * 10, float("nan"), -0.0]  # fmt: skip
TEXTS = ["", " ", "0", "1", "true", "svit", "../secret", "/etc/passwd", "..", ".", "a/b", "a\\b",
         "\x00", "\x1b[31mred", "line\nbreak", "\u202egnp.exe", "\ud800", "é" * 300,
         "[bold]x[/bold]", "%s%n", "{0.__class__}", "-o", "x" * 5000, "9" * 5000, "nan",
         "1e999"]  # fmt: skip


def nested(depth: int) -> list[Any]:
    tree: list[Any] = []
    for _ in range(depth):
        tree = [tree]
    return tree


TREES: list[Any] = [None, True, False, [], {}, [[]], [None], [0] * 1000, {"a": 1}, {"": {}},
                    [{}], nested(30), nested(150), {"x" * 3000: "y" * 3000}]  # fmt: skip
ODD = [*NUMBERS, *TEXTS, *TREES]


def odd_tree(rng: random.Random, tree: Any, changes: int | None = None) -> Any:
    """A copy of a tree with a few places changed; most often one."""
    tree = copy.deepcopy(tree)
    for _ in range(changes or rng.choice([1, 1, 1, 2, 3])):
        places = list(_places(tree))
        if not places:
            return rng.choice(ODD)
        rng.choice(CHANGES)(rng, *rng.choice(places), places)
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index)."""
    if isinstance(tree, dict | list):
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        for key in keys:
            yield tree, key
            yield from _places(tree[key])


def _remove(rng: random.Random, at: Any, key: Any, places: Any) -> None:
    del at[key]


def _replace(rng: random.Random, at: Any, key: Any, places: Any) -> None:
    at[key] = copy.deepcopy(rng.choice(ODD))


def _scale(rng: random.Random, at: Any, key: Any, places: Any) -> None:
    value = at[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        _replace(rng, at, key, places)
    else:
        at[key] = rng.choice([value + 1, value - 1, -value, value * 2, value * 1000, value * 10**9])


def _move(rng: random.Random, at: Any, key: Any, places: Any) -> None:
    other, name = rng.choice(places)
    at[key] = copy.deepcopy(other[name])


def _wrap(rng: random.Random, at: Any, key: Any, places: Any) -> None:
    at[key] = rng.choice([[at[key]], {"x": at[key]}, [at[key]] * 3, str(at[key])])


def _add(rng: random.Random, at: Any, key: Any, places: Any) -> None:
    value = copy.deepcopy(rng.choice(ODD))
    if isinstance(at, dict):
        at[rng.choice([*TEXTS, str(key) + "_"])] = value
    else:
        at.insert(key, value)


Change = Callable[[random.Random, Any, Any, Any], None]
CHANGES: list[Change] = [_remove, _replace, _replace, _replace, _scale, _scale, _move, _wrap, _add]


def odd_bytes(rng: random.Random, content: bytes, changes: int | None = None) -> bytes:
    """Bytes with bits turned, and parts cut out, doubled, overwritten or put in."""
    for _ in range(changes or rng.choice([1, 1, 2, 5, 20])):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice([1, 1, 2, 4, 8, 64, 1000]))
        part = content[start:end]
        content = content[:start] + rng.choice(BYTE_CHANGES)(rng, part) + content[end:]
    return content[: rng.randrange(len(content) + 1)] if rng.random() < 0.15 else content


BYTE_CHANGES: list[Callable[[random.Random, bytes], bytes]] = [
    lambda rng, part: bytes(byte ^ 1 << rng.randrange(8) for byte in part),
    lambda rng, part: b"",
    lambda rng, part: part + part,
    lambda rng, part: rng.choice([b"\x00", b"\xff", b"\x7f", b"\x80"]) * len(part),
    lambda rng, part: rng.randbytes(len(part)),
    lambda rng, part: part + rng.randbytes(rng.randrange(40)),
    lambda rng, part: rng.choice(TEXTS).encode("utf-8", "surrogatepass") + part,
]
