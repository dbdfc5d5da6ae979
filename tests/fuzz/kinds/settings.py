"""Architecture files: YAML with other values than meant, or with what YAML can do beside that."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from svit_deploy.methods.families import FAMILIES
from tests.fuzz.sound import Sound
from tests.fuzz.values import NUMBERS, TEXTS, odd_bytes, odd_tree

TAGS = ["!!bool x", "!!int x", "!!int ''", "!!float x", "!!timestamp x", "!!binary é", "!!null x",
        "!!set {a}", "!!omap [a]", "!!pairs [a]",
        "!!python/object/apply:os.system ['touch stolen']", "!!python/name:os.system",
        "!!python/tuple [1]", "!x y", "!!str 7", "!!map [1]", "!!seq {a: 1}", "2001-01-01",
        "2001-99-99", "2001-01-01 25:61:61", "1:99:99", "0x", "0b2", "08", "1_000", ".inf", "-.inf",
        ".nan", "~", "1e400", "=", "<<", "*a", "&a [*a]", "? a", "- - - 1", "@x", "`x`", "%x",
        "|\n  x", ">\n  x", "'", '"\\x41"', '"\\ud800"', "[", "{", "}", "\t1", "#"]  # fmt: skip


def make(rng: random.Random, folder: Path, sound: Sound) -> Sequence[Any]:
    family = rng.choice(list(FAMILIES))
    (folder / "arch.yaml").write_bytes(odd_yaml(rng, sound.arch(family)))
    command = rng.choice(["init", "init", "export", "verify"])
    if command == "init":
        return ["init", "arch.yaml", "-o", "out.safetensors"]
    task = FAMILIES[family].backbone.tasks[0]
    if command == "export":
        checkpoint = sound.checkpoint(family, task)
        return ["export", checkpoint, "--arch", "arch.yaml", *sound.sizes(task), "-o", "out"]
    bundle = sound.bundle(family, task)
    return ["verify", bundle, "--against", sound.checkpoint(family, task), "--arch", "arch.yaml"]


def odd_yaml(rng: random.Random, tree: Any) -> bytes:
    return rng.choice([_values, _values, _values, _syntax, _syntax, _large, _damaged])(rng, tree)


def _dump(tree: Any) -> str:
    return str(yaml.safe_dump(tree, default_flow_style=None, allow_unicode=True))


def _values(rng: random.Random, tree: Any) -> bytes:
    """Other values; half of the time of the kind that the key has, and absurd."""
    changed = dict(tree)
    for key in rng.sample(list(tree), rng.choice([1, 1, 2, 4])):
        value = changed[key]
        numbers = [n for n in NUMBERS if isinstance(n, type(value))] or NUMBERS
        if isinstance(value, list):
            changed[key] = rng.choice(
                [[], value * 2, value * 1000, value[::-1], [rng.choice(NUMBERS)]]
            )
        else:
            changed[key] = rng.choice([*numbers, *(3, 5, 12, 10**5, 10**7, 10**9)])
    if rng.random() < 0.5:
        changed = odd_tree(rng, tree)
    return _dump(changed).encode("utf-8", "surrogatepass")


def _syntax(rng: random.Random, tree: Any) -> bytes:
    """Lines that YAML reads in its own way, in the place of some of the file."""
    lines = _dump(tree).splitlines()
    for _ in range(rng.choice([1, 1, 2])):
        place = rng.randrange(len(lines))
        key = lines[place].partition(":")[0]
        lines[place] = rng.choice(
            [
                *[f"{key}: {rng.choice(TAGS)}"] * 4,
                f"{rng.choice(TAGS)}: 1",
                f"{key}: {rng.choice(TEXTS)}",
                lines[place] + "\n" + lines[place],
                "<<: " + lines[place],
                f"<<: {{{lines[place]}}}",
                "---",
                "...",
                "%YAML 1.1",
                "%TAG ! tag:x,2000:\n---",
                f"? [{key}]\n: 1",
                f"? {{{key}: 1}}\n: 1",
                " " * rng.randrange(5) + lines[place],
                "&a " + lines[place],
            ]
        )
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _large(rng: random.Random, tree: Any) -> bytes:
    """Much text, or little text that stands for much."""
    whole = _dump(tree)
    count = rng.choice([20, 1000, 20_000])
    steps = range(1, 25)
    bombs: list[Callable[[], str]] = [
        lambda: whole + "x: " + "[" * count,
        lambda: whole + "x: " + "{a: " * count,
        lambda: whole + "".join(f"k{i}: {i}\n" for i in range(count)),
        lambda: whole + "x: [" + "1, " * count + "]",
        lambda: whole + "x: " + "1" * count,
        lambda: whole + "#" * 50 * count,
        lambda: "- " * count,
        lambda: whole + "x: " + "a: " * count,
        lambda: (
            "a0: &a0 [1, 1]\n"
            + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in steps)
            + whole
        ),
        lambda: (
            "a0: &a0 {x: 1}\n"
            + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in steps)
            + whole
        ),
        lambda: whole.replace(": ", ": &n ", 1) + "".join(f"k{i}: *n\n" for i in range(count)),
        lambda: "num_heads: &x [*x]\n" + whole.replace("num_heads: 3", ""),
        lambda: whole + "x: !!timestamp " + "1" * count,
        lambda: whole + "x: " + ":".join(["59"] * count),
        lambda: whole + "x: !!binary " + "A" * count,
        lambda: whole + f"depth: {'9' * count}\n",
        lambda: whole.replace("depth: ", f"depth: 0x{'f' * count} # "),
        lambda: whole + f"0x{'f' * count}: 1\n",
    ]
    return rng.choice(bombs)().encode()


def _damaged(rng: random.Random, tree: Any) -> bytes:
    content = _dump(tree).encode()
    encoding = rng.choice(["utf-8-sig", "utf-16", "utf-32", "latin-1", None, None, None])
    return (content.decode() + "# é").encode(encoding) if encoding else odd_bytes(rng, content)
