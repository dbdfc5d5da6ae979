"""The stages of a Swin, for its graph and its forward pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

from svit_deploy.backbones.stages import STAGES, Stage
from svit_deploy.model.config import ModelConfig

CORNERS = ((0, 0), (1, 0), (0, 1), (1, 1))
"""Row and column of the four patches that merge into one, in the order of their channels."""
BN_EPS = 1e-5
"""Of the batch norms of a stem of convolutions."""
HIDDEN = -100.0
"""Added to the scores of keys that a shift brings into a window from the other side."""
FAINT = -64.0
"""The same in graphs: exp(-100) is below the normal numbers of float32, with which processors take
many times as long; both weights vanish unless scores of one window are 47 apart."""


@dataclass(frozen=True, kw_only=True)
class SwinSettings:
    """What the weights tell: blocks and heads of each stage, tokens along a window's side."""

    depths: tuple[int, ...]
    stage_heads: tuple[int, ...]
    window: int


@dataclass(frozen=True)
class WindowStage(Stage):
    """With its heads, how many blocks it has, and its windows: of two axes, or of three."""

    heads: int
    depth: int

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the map, in the order of its raster."""
        return self.rows, self.columns

    @property
    def windows(self) -> tuple[int, ...]:
        """Sides of a window, along the same axes."""
        raise NotImplementedError

    def shifts(self, block: int) -> tuple[int, ...]:
        """How far windows are moved along each axis in a block of the stage."""
        raise NotImplementedError

    @property
    def inside(self) -> int:
        """Tokens of a window."""
        return math.prod(self.windows)

    def block(self, block: int) -> str:
        return f"layers.{self.index}.blocks.{block}"


@dataclass(frozen=True)
class SwinStage(WindowStage):
    """With the side of its windows."""

    window: int

    @property
    def windows(self) -> tuple[int, int]:
        return self.window, self.window

    def shifts(self, block: int) -> tuple[int, int]:
        return self.shift(block), self.shift(block)

    def shift(self, block: int) -> int:
        """The same along both axes."""
        odd = block % 2 and min(self.rows, self.columns) > self.window
        return self.window // 2 if odd else 0


def stages(config: ModelConfig) -> list[SwinStage]:
    settings: SwinSettings = config.settings
    rows, columns = (side // config.patch_size for side in config.image_size)
    return [
        SwinStage(
            index=i,
            rows=rows >> i,
            columns=columns >> i,
            width=config.embed_dim << i,
            heads=settings.stage_heads[i],
            window=settings.window,
            depth=settings.depths[i],
        )
        for i in range(STAGES)
    ]


def places(config: ModelConfig) -> list[tuple[SwinStage, int]]:
    """The stage of each block, and its number there."""
    return [(stage, block) for stage in stages(config) for block in range(stage.depth)]
