"""What an export took for granted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Assumption:
    """A setting that neither the weights, nor a training's arguments, nor anybody told.

    Attributes:
        name: as after `--set`.
        value: what was taken for it.
        selects: whether it says which tokens are computed, and means nothing to the dense twin.
    """

    name: str
    value: Any
    selects: bool = False


def typed(value: Any) -> str:
    """A setting's value as typed after `--set`."""
    if isinstance(value, tuple):
        return ",".join(map(typed, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def in_words(assumed: Mapping[str, str]) -> str:
    """Settings and their values as typed: `prune_ratio=0.5 tradeoff=0.5`."""
    return " ".join(f"{name}={value}" for name, value in assumed.items())
