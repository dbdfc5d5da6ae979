"""Which block of a ToMe merges how many tokens, for its graph and its forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from svit_deploy.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class TomeSettings:
    """What is chosen for a DeiT.

    Attributes:
        r: pairs that merge in every block; several numbers for a schedule, then 0 to the end.
        inflect: for one number, how it changes from block to block: -1 falls from 2 r to 0.
        prop_attn: whether a token counts in attention for as many patches as it stands for.
    """

    r: tuple[int, ...]
    inflect: float = 0.0
    prop_attn: bool = True


def schedule(settings: TomeSettings, depth: int) -> list[int]:
    """Pairs that merge in each block, as far as there are tokens for them."""
    if len(settings.r) > 1:
        return [*settings.r, *[0] * (depth - len(settings.r))]
    least = int(settings.r[0] * (1 - settings.inflect))
    most = 2 * settings.r[0] - least
    step = (most - least) / max(depth - 1, 1)
    return [int(least + step * block) for block in range(depth)]


@dataclass(frozen=True)
class Merge:
    """The sizes of one merge: of `tokens`, `pairs` merge; A and B are at even and odd places."""

    tokens: int
    pairs: int

    @property
    def a(self) -> int:
        return (self.tokens + 1) // 2

    @property
    def b(self) -> int:
        return self.tokens // 2


def merges(config: ModelConfig) -> list[Merge]:
    """Those of every gate."""
    wanted = schedule(config.settings, config.depth)
    found, tokens = [], config.num_tokens
    for block in config.gate_blocks:
        merge = Merge(tokens, min(wanted[block], (tokens - config.prefix_tokens) // 2))
        found.append(merge)
        tokens -= merge.pairs
    return found
