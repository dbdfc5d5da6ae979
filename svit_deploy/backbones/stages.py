"""Stages of a backbone: each has half the sides of the one before, and twice its width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from svit_deploy.errors import UsageError
from svit_deploy.model.arch import Arch

STAGES = 4
Rows = TypeVar("Rows")


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


class Staged(Generic[Rows]):
    """What a backbone in stages computes, in a graph or in the reference.

    A block has two halves. The first mixes tokens and needs the whole map; the second computes each
    token by itself, so that a method may let it compute some of them, or others in another way.
    Tokens are rows `[B * tokens, C]` by their name in a graph, `[B, tokens, C]` in the reference.
    """

    def places(self) -> list[tuple[Any, int]]:
        """The stage of each block, and its number there."""
        raise NotImplementedError

    def embed(self, images: Rows) -> Rows:
        """`[B, 3, H, W]` -> the tokens of the first stage."""
        raise NotImplementedError

    def shrink(self, x: Rows, stage: Any) -> Rows:
        """The tokens of the stage before -> those that this one begins with."""
        raise NotImplementedError

    def mix(self, x: Rows, block: int) -> tuple[Rows, Rows]:
        """A block's first half: what its second half is added to, and what that computes from."""
        raise NotImplementedError

    def feed(self, x: Rows, block: int) -> Rows:
        """What a block's second half adds, of any rows."""
        raise NotImplementedError

    def name_of(self, block: int) -> str:
        """A block in the names of weights."""
        stage, number = self.places()[block]
        return str(stage.block(number))


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
