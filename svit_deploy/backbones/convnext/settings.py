"""The stages of a ConvNeXt, for its graph and its forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from svit_deploy.model.config import ModelConfig

STAGES = 4
KERNEL = 7
"""Side of the convolution that mixes the places of a map, each channel by itself."""


@dataclass(frozen=True, kw_only=True)
class ConvNextSettings:
    """What the weights tell: blocks of each stage."""

    depths: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """One resolution: `rows` x `columns` places of `width` channels."""

    index: int
    rows: int
    columns: int
    width: int

    @property
    def tokens(self) -> int:
        return self.rows * self.columns

    def block(self, block: int) -> str:
        return f"stages.{self.index}.{block}"


def places(config: ModelConfig) -> list[tuple[Stage, int]]:
    """The stage of each block, and its number there."""
    rows, columns = (side // config.patch_size for side in config.image_size)
    found = []
    for index, depth in enumerate(config.settings.depths):
        stage = Stage(index, rows >> index, columns >> index, config.embed_dim << index)
        found += [(stage, block) for block in range(depth)]
    return found
