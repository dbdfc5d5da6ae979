"""The stages of a ConvNeXt, for its graph and its forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from svit_deploy.backbones.stages import Stage
from svit_deploy.model.config import ModelConfig

KERNEL = 7
"""Side of the convolution that mixes the places of a map, each channel by itself."""


@dataclass(frozen=True, kw_only=True)
class ConvNextSettings:
    """What the weights tell: blocks of each stage."""

    depths: tuple[int, ...]


class ConvNextStage(Stage):
    def block(self, block: int) -> str:
        return f"stages.{self.index}.{block}"


def places(config: ModelConfig) -> list[tuple[ConvNextStage, int]]:
    """The stage of each block, and its number there."""
    rows, columns = (side // config.patch_size for side in config.image_size)
    found = []
    for index, depth in enumerate(config.settings.depths):
        stage = ConvNextStage(index, rows >> index, columns >> index, config.embed_dim << index)
        found += [(stage, block) for block in range(depth)]
    return found
