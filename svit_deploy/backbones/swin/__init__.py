"""Swin: attention in windows, shifted in every second block; the dense twin of STViT-R.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021;
keys and numbers are those of microsoft/Swin-Transformer.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from svit_deploy.backbones.backbone import Backbone, Named
from svit_deploy.backbones.heads import MEAN, Head
from svit_deploy.backbones.stages import STAGES, told_depths
from svit_deploy.backbones.swin.graph import SwinGraph
from svit_deploy.backbones.swin.settings import SwinSettings
from svit_deploy.errors import InputError
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.keys import Dims, Shape, Tensors, linear, norm
from svit_deploy.model.sizes import Misfit, nearest_multiple

if TYPE_CHECKING:
    from svit_deploy.backbones.reference import BackboneReference

TABLE = "layers.{}.blocks.0.attn.relative_position_bias_table"
"""What tells the side of windows and the heads of a stage."""


@dataclass(frozen=True)
class SwinDims(Dims):
    """`embed_dim` is the width of the first stage, `depth` counts all blocks."""

    depths: tuple[int, ...] = ()
    stage_heads: tuple[int, ...] = ()
    window: int = 0


class Swin(Backbone):
    title = "Swin"
    graph = SwinGraph
    head: ClassVar[Head | None] = MEAN
    settings: ClassVar[type | None] = SwinSettings
    told_by_weights: ClassVar[tuple[str, ...]] = ("depths", "stage_heads", "window")
    required: ClassVar[tuple[str, ...]] = ("depths",)
    eps = (1e-5, 1e-5, 1e-5)
    class_token = False
    has_positions = False

    def reference(self) -> type[BackboneReference]:
        from svit_deploy.backbones.swin.reference import SwinReference

        return SwinReference

    def matches(self, keys: Collection[str]) -> bool:
        return TABLE.format(0) in keys

    def is_unused(self, key: str) -> bool:
        return key.endswith((".relative_position_index", ".attn_mask", ".num_batches_tracked"))

    def infer(self, family: str, tensors: Tensors, named: Named) -> SwinDims:
        depths = [tensors.count(rf"layers\.{stage}\.blocks") for stage in range(STAGES)]
        heads = [self.heads(tensors, stage) for stage in range(STAGES)]
        side = (math.isqrt(tensors.shape(TABLE.format(0), 2)[0]) + 1) // 2
        return SwinDims(
            family=family,
            embed_dim=tensors.shape("layers.0.blocks.0.norm1.weight", 1)[0],
            depth=sum(depths),
            mlp_dim=tensors.shape("layers.0.blocks.0.mlp.fc1.weight", 2)[0],
            patch_size=self.patch_size(tensors),
            num_patches=(8 * side) ** 2,  # one window in the last stage
            num_classes=self.classes(tensors),
            num_heads=heads[0],
            depths=tuple(depths),
            stage_heads=tuple(heads),
            window=side,
        )

    def heads(self, tensors: Tensors, stage: int) -> int:
        """Attention heads of a stage."""
        return tensors.shape(TABLE.format(stage), 2)[1]

    def patch_size(self, tensors: Tensors) -> int:
        """Pixels along the side of a patch."""
        return tensors.shape("patch_embed.proj.weight", 4)[2]

    def classes(self, tensors: Tensors) -> int:
        return tensors.shape("head.weight", 2)[0]

    def dims_from_arch(self, family: str, arch: Arch) -> SwinDims:
        assert arch.embed_dim and arch.patch_size and arch.image_size
        patch = arch.patch_size
        heads = tuple(arch.num_heads << stage for stage in range(STAGES))
        depths = told_depths(arch, "2,2,6,2")
        return SwinDims(
            family=family,
            embed_dim=arch.embed_dim,
            depth=sum(depths),
            mlp_dim=4 * arch.embed_dim,
            patch_size=arch.patch_size,
            num_patches=(arch.image_size[0] // patch) * (arch.image_size[1] // patch),
            num_classes=arch.num_classes or 1000,
            num_heads=heads[0],
            depths=depths,
            stage_heads=heads,
            window=arch.image_size[0] // (8 * patch),
        )

    def shapes(self, dims: Any) -> dict[str, Shape]:
        shapes = self.stem_shapes(dims)
        for stage in range(STAGES):
            width = dims.embed_dim << stage
            for block in range(dims.depths[stage]):
                shapes |= self.block_shapes(dims, stage, block)
            if stage + 1 < STAGES:
                name = f"layers.{stage}.downsample"
                shapes |= norm(f"{name}.norm", 4 * width)
                shapes[f"{name}.reduction.weight"] = (2 * width, 4 * width)
        return shapes | self.head_shapes(dims)

    def head_shapes(self, dims: Any) -> dict[str, Shape]:
        """What is behind the blocks."""
        width = dims.embed_dim << (STAGES - 1)
        return norm("norm", width) | linear("head", dims.num_classes, width)

    def stem_shapes(self, dims: Any) -> dict[str, Shape]:
        width, patch = dims.embed_dim, dims.patch_size
        weights: dict[str, Shape] = {"patch_embed.proj.weight": (width, 3, patch, patch)}
        return weights | {"patch_embed.proj.bias": (width,)} | norm("patch_embed.norm", width)

    def block_shapes(self, dims: Any, stage: int, block: int) -> dict[str, Shape]:
        name, width = f"layers.{stage}.blocks.{block}", dims.embed_dim << stage
        hidden = dims.mlp_dim << stage
        shapes = norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
        shapes |= linear(f"{name}.attn.qkv", 3 * width, width)
        shapes |= linear(f"{name}.attn.proj", width, width)
        shapes |= linear(f"{name}.mlp.fc1", hidden, width)
        shapes |= linear(f"{name}.mlp.fc2", width, hidden)
        table = (2 * dims.window - 1) ** 2, dims.stage_heads[stage]
        return shapes | {f"{name}.attn.relative_position_bias_table": table}

    def misfit(self, config: ModelConfig) -> Misfit | None:
        window, (height, width) = config.settings.window, config.image_size
        last = config.patch_size << STAGES - 1  # pixels of a token there
        nearest = nearest_multiple(config.image_size, last * max(window, 1))
        if nearest == config.image_size:
            return None
        windows = f"windows of {window}x{window}"
        return Misfit(f"{windows} do not tile an image of {height}x{width}", nearest)

    def check(self, config: ModelConfig) -> None:
        self.check_stages(config)
        if config.settings.window < 1:
            raise InputError(
                f"window is {config.settings.window}", "give a complete Swin checkpoint"
            )

    def check_stages(self, config: ModelConfig) -> None:
        """Raises InputError for blocks and heads that no model has."""
        settings = config.settings
        heads, depths = settings.stage_heads, settings.depths
        if len(heads) != STAGES or len(depths) != STAGES or min(*heads, *depths) < 1:
            raise InputError(
                f"depths {list(depths)} and heads {list(heads)} are not of {STAGES} stages",
                "give a complete Swin checkpoint",
            )
        for stage, count in enumerate(heads):
            if (width := config.embed_dim << stage) % count:
                raise InputError(
                    f"{count} heads do not divide the width {width} of stage {stage}",
                    "give a complete Swin checkpoint",
                )
