"""Multi-scale features in front of token mergence: a second, smaller group of tokens at first.

The whole of Bian et al., "Multi-Scale And Token Mergence: Make Your ViT More Efficient", arXiv
2306.04897. There is no public code. What the paper leaves open, and its counts of parameters and
operations do not settle, are settings (`MultiScaleSettings`); the layout of keys is ours: the
backbone's, with `low_cls_token`, `low_pos_embed` of a grid half as wide and high, and the
convolutions `lka.{conv0, conv_spatial, conv1}` and `peg.proj`.

Until the first selection there are two groups of tokens, each with a class token and positions of
its own: the high one of all patches, and the low one of their means two by two. Both pass the same
blocks. In the first of them attention of the high group is cheap: it runs on means of two by two
normed tokens, and each mean's result is added to all four. Then both become one: X = PEG(high +
LKA(low)), the low map repeated two by two; LKA(x) = x * conv1(conv_spatial(conv0(x))), and PEG(x) =
x + proj(x). The class tokens are added. From there on it is token mergence.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from svit_deploy.errors import InputError
from svit_deploy.methods.mergence import Mergence, MergenceReference
from svit_deploy.methods.multiscale.graph import MultiScaleGraph
from svit_deploy.methods.multiscale.settings import (
    CONVOLUTIONS,
    MultiScaleOnLvVitSettings,
    MultiScaleSettings,
)
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.keys import Shape
from svit_deploy.model.sizes import Misfit, nearest_multiple

if TYPE_CHECKING:
    from torch import Tensor


class MultiScale(Mergence):
    title = "Multi-scale Token Mergence"
    settings = MultiScaleSettings

    def matches(self, keys: Collection[str]) -> bool:
        return "low_pos_embed" in keys

    def shapes(self, shapes: dict[str, Shape], dims: Any) -> dict[str, Shape]:
        width = dims.embed_dim
        shapes["low_cls_token"] = (1, 1, width)
        shapes["low_pos_embed"] = (1, 1 + dims.num_patches // 4, width)
        for name, (side, _) in CONVOLUTIONS.items():
            shapes |= {f"{name}.weight": (width, 1, side, side), f"{name}.bias": (width,)}
        return shapes | {"lka.conv1.weight": (width, width, 1, 1), "lka.conv1.bias": (width,)}

    def misfit(self, config: ModelConfig) -> Misfit | None:
        height, width = config.grid
        if not height % 2 and not width % 2:
            return None
        nearest = nearest_multiple(config.image_size, 2 * config.patch_size)
        return Misfit(f"a grid of {height}x{width} patches has no half", nearest)

    def check(self, config: ModelConfig) -> None:
        super().check(config)
        settings = config.settings
        if any(side % 2 for side in config.native_grid):
            rows, columns = config.native_grid
            raise InputError(
                f"positions of {rows}x{columns} patches have no half", "give another checkpoint"
            )
        if not settings.prune_blocks or not 0 < settings.prune_blocks[0] < config.depth:
            raise InputError(
                f"prune_blocks {list(settings.prune_blocks)} leave no block for two groups",
                "let the first selection be behind block 0",
            )
        if not 0 <= settings.cheap_blocks <= settings.prune_blocks[0]:
            raise InputError(
                f"cheap_blocks is {settings.cheap_blocks}, and both groups become one in front of "
                f"block {settings.prune_blocks[0]}",
                f"give a number from 0 to {settings.prune_blocks[0]}",
            )
        if len(settings.class_shares) != 2:
            raise InputError(
                f"class_shares has {len(settings.class_shares)} values",
                "give the share of the high and that of the low class token, for example 1,1",
            )

    def graph(self, writer: Any, rows: str) -> MultiScaleGraph:
        return MultiScaleGraph(writer, rows)

    def reference(self, backbone: Any, x: Tensor) -> MergenceReference:
        from svit_deploy.methods.multiscale.reference import MultiScaleReference

        return MultiScaleReference(backbone, x)


class MultiScaleOnLvVit(MultiScale):
    settings = MultiScaleOnLvVitSettings
