"""How many tokens of an image a gate may keep in `budget` mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from svit_deploy.model.config import ModelConfig

UNIT = 10_000
"""Shares are counted in units of 1 / 10000, in graphs and here alike."""


@dataclass(frozen=True)
class Budget:
    """A count of gated tokens, or a share of all tokens where images differ in theirs.

    Attributes:
        value: as a bundle records it: a whole number, or a share above 0 and at most 1.
        always: tokens in front of the gated ones, which are always kept.
    """

    value: int | float
    always: int = 0

    @property
    def share(self) -> int | None:
        """The share in units; None for a count."""
        return round(self.value * UNIT) if isinstance(self.value, float) else None

    def rows(self, tokens: int) -> int:
        """Rows of an image of `tokens` that it lets through, always-kept ones included.

        A share is rounded up, as the graph rounds it.
        """
        if self.share is None:
            return int(self.value) + self.always
        return -(-tokens * self.share // UNIT)

    def fits(self, gated: int) -> bool:
        """Whether a gate that decides on `gated` tokens can have this budget."""
        return 1 <= self.value <= gated if self.share is None else 0 < self.value <= 1


def budgets_of(config: ModelConfig, values: Sequence[int | float]) -> tuple[Budget, ...]:
    """The recorded value of each gate with the tokens that it always keeps."""
    return tuple(Budget(value, config.first_gated(gate)) for gate, value in enumerate(values))


def rows_within(budgets: Sequence[Budget], tokens: int) -> np.ndarray | None:
    """Rows `[G]` that budgets let through of an image of `tokens`; None without budgets."""
    return np.array([budget.rows(tokens) for budget in budgets]) if budgets else None
