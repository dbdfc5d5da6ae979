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

from svit_deploy.backbones.swin import SwinDims
from svit_deploy.backbones.tokens import GraphTokens, ReferenceTokens
from svit_deploy.errors import InputError
from svit_deploy.methods.method import Method
from svit_deploy.methods.semantic.backbone import SemanticSwin
from svit_deploy.methods.semantic.sampling import check_windows, size_misfit
from svit_deploy.methods.stvitr.graph import StvitRGraph
from svit_deploy.methods.stvitr.settings import SAMPLING, UNIT, StvitRSettings, side_of
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig, TokenMode
from svit_deploy.model.keys import Shape, Tensors
from svit_deploy.model.sizes import Misfit

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class StvitRDims(SwinDims):
    """With the settings that the weights tell."""

    relative_pos: bool = False
    use_global: bool = False
    use_conv_pos: bool = False


class StvitRSwin(SemanticSwin):
    """The third stage runs in units, and what is not the first block of one has other blocks."""

    def is_semantic(self, dims: Any, stage: int, block: int) -> bool:
        return stage == 2 and block % UNIT > 0


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
            shapes["layers.2.semantic_token2"] = (1, SAMPLING.count, width)
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
        return size_misfit(config, "STViT-R")

    def check(self, config: ModelConfig) -> None:
        check_windows(config, "STViT-R")
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
