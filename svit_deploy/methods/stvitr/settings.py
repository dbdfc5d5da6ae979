"""The sizes of an STViT-R, for its graph and its forward pass."""

from __future__ import annotations

from dataclasses import dataclass

UNIT = 6
"""Blocks of a unit."""
SAMPLE = 3
"""Semantic tokens along the side of a window."""
AROUND, STRIDE = 10, 4
"""Side and distance of the larger windows that semantic tokens are made from."""
SIDE, WINDOWS = 14, 2
"""Image tokens and windows along the side of the third stage."""
SEMANTIC = (SAMPLE * WINDOWS) ** 2
BN_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class StvitRSettings:
    """What a training chooses.

    Attributes:
        shortcut: whether semantic tokens start from the pooled image tokens, as no published model.
    """

    shortcut: bool = False
