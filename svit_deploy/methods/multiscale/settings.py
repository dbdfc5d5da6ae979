"""What is chosen for multi-scale features, and what their graph and forward pass agree on."""

from __future__ import annotations

from dataclasses import dataclass

from svit_deploy.methods.mergence import MergenceSettings

CONVOLUTIONS = {"lka.conv0": (5, 1), "lka.conv_spatial": (7, 3), "peg.proj": (3, 1)}
"""Side and dilation of those that take every channel by itself."""


@dataclass(frozen=True, kw_only=True)
class MultiScaleSettings(MergenceSettings):
    """No model is published; the defaults are what the paper's counts and words fit best.

    Attributes:
        cheap_blocks: how many of the first blocks have cheap attention in the high group.
        mean_of_normed: whether cheap attention takes means behind its norm, or in front of it.
        class_shares: of the high and the low class token, in their sum.
    """

    cheap_blocks: int = 2
    mean_of_normed: bool = True
    class_shares: tuple[float, ...] = (1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class MultiScaleOnLvVitSettings(MultiScaleSettings):
    """By default three selections share out the blocks evenly: the paper's of LV-ViT-S."""

    prune_blocks: tuple[int, ...] = ()


def half(grid: tuple[int, int]) -> tuple[int, int]:
    return grid[0] // 2, grid[1] // 2
