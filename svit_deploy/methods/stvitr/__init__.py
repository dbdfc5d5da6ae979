"""STViT-R: most of Swin's third stage runs on a few semantic tokens, then all tokens return.

Chang et al., "Making Vision Transformers Efficient from A Token Sparsification View", CVPR 2023;
the numbers are those of changsn/STViT-R @ b4a27a07.

The third stage is made of units of six blocks: a Swin block; the semantic tokens, three by three
out of each window, made by attention to a larger window around it; four more blocks of which the
first two also look at the image tokens or stay inside a window; and the image tokens looking at
the semantic ones. Nothing is selected: the graph is static and no decision is to be compared.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from svit_deploy.backbones.swin import Swin, SwinDims
from svit_deploy.backbones.tokens import GraphTokens, ReferenceTokens
from svit_deploy.errors import InputError
from svit_deploy.methods.method import Method
from svit_deploy.methods.stvitr.graph import ConvStemGraph, StvitRGraph
from svit_deploy.methods.stvitr.settings import (
    SEMANTIC,
    SIDE,
    UNIT,
    WINDOWS,
    StvitRSettings,
    side_of,
)
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig, TokenMode
from svit_deploy.model.keys import Shape, Tensors, linear, norm
from svit_deploy.model.sizes import Misfit

if TYPE_CHECKING:
    from torch import Tensor

    from svit_deploy.backbones.reference import BackboneReference


@dataclass(frozen=True)
class StvitRDims(SwinDims):
    """With the settings that the weights tell."""

    relative_pos: bool = False
    use_global: bool = False
    use_conv_pos: bool = False


class StvitRSwin(Swin):
    """Swin, but that convolutions make the patches, and the third stage has other blocks."""

    graph = ConvStemGraph
    folds_norms = True

    def reference(self) -> type[BackboneReference]:
        from svit_deploy.methods.stvitr.reference import ConvStemReference

        return ConvStemReference

    def patch_size(self, tensors: Tensors) -> int:
        return 4

    def stem_shapes(self, dims: Any) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        sizes = {0: (dims.embed_dim // 2, 3), 2: (dims.embed_dim, dims.embed_dim // 2)}
        for part, (outputs, inputs) in sizes.items():
            name = f"patch_embed.proj.{part}"
            shapes[f"{name}.c.weight"] = (outputs, inputs, 3, 3)
            shapes |= norm(f"{name}.bn", outputs)
            shapes |= {f"{name}.bn.running_mean": (outputs,), f"{name}.bn.running_var": (outputs,)}
        return shapes

    def random(self, name: str, shape: Shape, rng: np.random.Generator) -> np.ndarray | None:
        """A flat part of an image is not 0 behind the stem, where nothing else tells its tokens."""
        if name.startswith("patch_embed.") and name.endswith(".bn.bias"):
            return 0.2 * rng.standard_normal(shape)
        return None

    def block_shapes(self, dims: Any, stage: int, block: int) -> dict[str, Shape]:
        """A block inside a unit has queries of its own, and layer scales."""
        shapes = super().block_shapes(dims, stage, block)
        if stage != 2 or block % UNIT == 0:
            return shapes
        name, width = f"layers.{stage}.blocks.{block}", dims.embed_dim << stage
        for gone in ("qkv.weight", "qkv.bias", "relative_position_bias_table"):
            del shapes[f"{name}.attn.{gone}"]
        shapes |= linear(f"{name}.attn.q", width, width)
        shapes |= linear(f"{name}.attn.kv", 2 * width, width)
        return shapes | {f"{name}.layer_scale_1": (width,), f"{name}.layer_scale_2": (width,)}


class StvitR(Method):
    title = "STViT-R"
    modes = (TokenMode.STATIC,)
    settings: ClassVar[type | None] = StvitRSettings
    told_by_weights: ClassVar[tuple[str, ...]] = ("relative_pos", "use_global", "use_conv_pos")

    def matches(self, keys: Collection[str]) -> bool:
        return "layers.2.blocks.1.attn.kv.weight" in keys

    def settings_from_args(self, args: Mapping[str, Any]) -> dict[str, Any] | None:
        names = (entry.name for entry in fields(StvitRSettings))
        return {name: args[name.upper()] for name in names if name.upper() in args} or None

    def upgrade(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**dict.fromkeys(self.told_by_weights, False), **settings}

    def infer(self, tensors: Tensors, dims: Any) -> Any:
        return StvitRDims(
            **vars(dims),
            relative_pos="layers.2.blocks.3.attn.relative_position_bias_table" in tensors.arrays,
            use_global="layers.2.semantic_token2" in tensors.arrays,
            use_conv_pos="layers.2.blocks.1.conv_pos.proj.0.weight" in tensors.arrays,
        )

    def dims_from_arch(self, dims: Any, arch: Arch) -> Any:
        told = {name: arch.settings.get(name, False) for name in self.told_by_weights}
        return StvitRDims(**vars(dims), **told)

    def shapes(self, shapes: dict[str, Shape], dims: Any) -> dict[str, Shape]:
        width = 4 * dims.embed_dim
        if dims.use_global:
            shapes["layers.2.semantic_token2"] = (1, SEMANTIC, width)
        for block in range(dims.depths[2]):
            name = f"layers.2.blocks.{block}"
            if dims.relative_pos and (side := side_of(block)):
                table = (2 * side - 1) ** 2, dims.stage_heads[2]
                shapes[f"{name}.attn.relative_position_bias_table"] = table
            if dims.use_conv_pos and block % UNIT == 1:
                shapes[f"{name}.conv_pos.proj.0.weight"] = (width, 1, 3, 3)
                shapes[f"{name}.conv_pos.proj.0.bias"] = (width,)
        return shapes

    def misfit(self, config: ModelConfig) -> Misfit | None:
        side, (height, width) = SIDE * 16, config.image_size
        if (height, width) == (side, side):
            return None
        reason = f"STViT-R is defined for images of {side}x{side}, not {height}x{width}"
        return Misfit(reason, (side, side))

    def check(self, config: ModelConfig) -> None:
        if config.settings.window != SIDE // WINDOWS:
            raise InputError(
                f"STViT-R is defined for windows of 7x7, not {config.settings.window}",
                "give a complete STViT-R checkpoint",
            )
        if config.settings.depths[2] not in (UNIT, 2 * UNIT, 3 * UNIT):
            raise InputError(
                f"the third stage has {config.settings.depths[2]} blocks, not 6, 12 or 18",
                "give a complete STViT-R checkpoint",
            )

    def graph(self, writer: Any, rows: str) -> GraphTokens:
        return StvitRGraph(writer, rows)

    def reference(self, backbone: Any, x: Tensor) -> ReferenceTokens:
        from svit_deploy.methods.stvitr.reference import StvitRReference

        return StvitRReference(backbone, x)
