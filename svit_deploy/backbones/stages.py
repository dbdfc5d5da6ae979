"""Stages of a backbone: each has half the sides of the one before, and twice its width."""

from __future__ import annotations

from dataclasses import dataclass

from svit_deploy.errors import UsageError
from svit_deploy.model.arch import Arch

STAGES = 4


@dataclass(frozen=True)
class Stage:
    """One resolution: `rows` x `columns` tokens of `width` channels."""

    index: int
    rows: int
    columns: int
    width: int

    @property
    def tokens(self) -> int:
        return self.rows * self.columns


def told_depths(arch: Arch, example: str) -> tuple[int, ...]:
    """Blocks of each stage, of an architecture that tells them.

    Raises:
        UsageError: they are not those of so many stages.
    """
    depths = tuple(arch.settings["depths"])
    if len(depths) != STAGES or min(depths) < 1:
        raise UsageError(
            f"depths {list(depths)} are not those of {STAGES} stages",
            f"give the blocks of each of {STAGES} stages, for example {example}",
        )
    return depths
