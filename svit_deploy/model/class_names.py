"""What a model's classes are called, and files that tell it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from svit_deploy.errors import InputError
from svit_deploy.io.text import shown

MAX_BYTES = 2**24
MAX_LENGTH = 200
_WNID = re.compile(r"(n\d{8})(?:\s+(.*))?")  # WordNet's number of a noun: ImageNet's folders


@dataclass(frozen=True)
class ClassNames:
    """Names of classes by their number; none where they are not known.

    Attributes:
        names: as given; ImageNet's may begin with a WordNet number, `n01440764 tench`.
    """

    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def title(self, label: int) -> str:
        """A class's name for the eye, without a WordNet number before it; `class 3` if unknown."""
        if not 0 <= label < len(self.names):
            return f"class {label}"
        found = _WNID.fullmatch(self.names[label])
        return found[2] if found and found[2] else self.names[label]

    def number(self, name: str) -> int | None:
        """The class of a name: whole, its WordNet number or its title; `_` stands for a space."""
        return self._numbers.get(_plain(name))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """By each spelling that only one class has."""
        spellings = []
        for number, name in enumerate(self.names):
            wnid = _WNID.fullmatch(name)
            known = {name, self.title(number), *([wnid[1]] if wnid else [])}
            spellings += [(_plain(one), number) for one in {*map(_plain, known)}]
        uses = Counter(spelling for spelling, _ in spellings)
        return {spelling: number for spelling, number in spellings if uses[spelling] == 1}


def printable_names(names: Sequence[object], limit: int = MAX_LENGTH) -> tuple[str, ...]:
    """Names from a file, cut and made printable."""
    return tuple(shown(name, limit) for name in names)


def read_class_names(path: Path, num_classes: int) -> ClassNames:
    """Reads the name of every class.

    The file is UTF-8 text with one name a line in the order of the classes, as ImageNet's
    `n01440764 tench, Tinca tinca`; or JSON: a list of names, names by number, `[WordNet number,
    name]` by number as Keras has them, or numbers by name.

    Raises:
        InputError: unreadable, another number of names than `num_classes`, an empty name or one
            that stands twice.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError("it is too large")
        text = content.decode("utf-8-sig")
        found = _from_json(json.loads(text)) if path.suffix.lower() == ".json" else _lines(text)
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0][:200]
        raise InputError(
            f"class names {path} cannot be read ({why})",
            "give text with one name per line, or JSON with a list of names",
        ) from None
    names = printable_names(found)
    if len(names) != num_classes:
        raise InputError(
            f"{path} names {len(names)} classes, and the model has {num_classes}",
            "give one name per class, in the order of the classes",
        )
    twice = [name for name, uses in Counter(names).items() if uses > 1 or not name]
    if twice:
        raise InputError(
            f"{path} names several classes {twice[0]!r}, or none", "give each a name of its own"
        )
    return ClassNames(names)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _from_json(content: Any) -> list[str]:
    """Raises ValueError for anything but the forms of `read_class_names`."""
    if isinstance(content, dict):
        if all(type(value) is int for value in content.values()):
            content = {str(number): name for name, number in content.items()}
        content = [content.get(str(number)) for number in range(len(content))]
    if not isinstance(content, list):
        raise ValueError("it holds no names")
    names = [" ".join(n) if isinstance(n, list) and all_text(n) else n for n in content]
    if not all_text(names):
        raise ValueError("it does not name every class from 0 on")
    return names


def all_text(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split())
