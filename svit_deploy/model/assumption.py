"""What an export took for granted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OF_PICTURES = ("mean", "std", "crop_ratio", "interpolation")
"""Settings that say how a picture becomes an input: no graph contains them."""


@dataclass(frozen=True)
class Assumption:
    """A setting that neither the weights, nor a training's arguments, nor anybody told.

    Attributes:
        name: as after `--set`.
        value: what was taken for it.
        selects: whether it says which tokens are computed, and means nothing to the dense twin.
        published: whether the published model of this shape has the same.
        of_inputs: whether it says how a picture or a video becomes an input.
    """

    name: str
    value: Any
    selects: bool = False
    published: bool = False
    of_inputs: bool = False

    def is_guess(self, pictures_decide: bool = False) -> bool:
        """Whether the graph depends on it, and nothing speaks for it but that it is usual.

        Args:
            pictures_decide: whether thresholds or budgets are chosen on pictures.
        """
        return not self.published and (pictures_decide or not self.of_inputs)

    @property
    def option(self) -> str:
        return f"--set {self.name}={typed(self.value)}"

    @property
    def line(self) -> str:
        """In an architecture file."""
        return f"{self.name}: {typed(self.value)}"


def typed(value: Any) -> str:
    """A setting's value as typed after `--set`."""
    if isinstance(value, tuple):
        return ",".join(map(typed, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def in_words(assumed: Mapping[str, str]) -> str:
    """Settings and their values as typed: `prune_ratio=0.5 tradeoff=0.5`."""
    return " ".join(f"{name}={value}" for name, value in assumed.items())
