"""LV-ViT: a ViT with a convolutional stem, damped blocks, and a second head on the patches.

Jiang et al., "All Tokens Matter: Token Labeling for Training Better Vision Transformers", NeurIPS
2021; the numbers are those of zihangJiang/TokenLabeling @ 9dbfd59a.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from svit_deploy.backbones.backbone import Named
from svit_deploy.backbones.lvvit.graph import LvVitGraph
from svit_deploy.backbones.lvvit.head import DENSE_LABELS
from svit_deploy.backbones.vit import Vit
from svit_deploy.errors import InputError
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.keys import Dims, Shape, Tensors, linear, norm

if TYPE_CHECKING:
    from svit_deploy.backbones.reference import BackboneReference


@dataclass(frozen=True, kw_only=True)
class LvVitSettings:
    """What the weights cannot tell.

    Attributes:
        skip_lam: what a block's attention and MLP are divided by before they are added.
    """

    skip_lam: float


@dataclass(frozen=True)
class LvVitDims(Dims):
    """`stem` are the channels of the convolutions in front of the patches."""

    stem: int = 0


class LvVit(Vit):
    title = "LV-ViT"
    graph = LvVitGraph
    head = DENSE_LABELS
    folds_norms = True
    settings = LvVitSettings
    eps = (1e-5, 1e-5, 1e-5)

    def reference(self) -> type[BackboneReference]:
        from svit_deploy.backbones.lvvit.reference import LvVitReference

        return LvVitReference

    def matches(self, keys: Collection[str]) -> bool:
        return "patch_embed.conv1.weight" in keys

    def is_unused(self, key: str) -> bool:
        return key.endswith(".num_batches_tracked")

    def infer(self, family: str, tensors: Tensors, named: Named) -> LvVitDims:
        dims, stem = (
            super().infer(family, tensors, named),
            tensors.shape("patch_embed.conv1.weight", 4),
        )
        # The patches are cut after a convolution of stride 2.
        return LvVitDims(**vars(replace(dims, patch_size=2 * dims.patch_size)), stem=stem[0])

    def dims_from_arch(self, family: str, arch: Arch) -> LvVitDims:
        dims = replace(super().dims_from_arch(family, arch), mlp_dim=3 * (arch.embed_dim or 0))
        return LvVitDims(**vars(dims), stem=128 if dims.embed_dim >= 768 else 64)

    def shapes(self, dims: Any) -> dict[str, Shape]:
        shapes, stem, half = super().shapes(dims), dims.stem, dims.patch_size // 2
        shapes["patch_embed.proj.weight"] = (dims.embed_dim, stem, half, half)
        for i, (inputs, side) in enumerate(((3, 7), (stem, 3), (stem, 3)), 1):
            name = f"patch_embed.bn{i}"
            shapes[f"patch_embed.conv{i}.weight"] = (stem, inputs, side, side)
            shapes |= norm(name, stem)
            shapes |= {f"{name}.running_mean": (stem,), f"{name}.running_var": (stem,)}
        for block in range(dims.depth):
            del shapes[f"blocks.{block}.attn.qkv.bias"]
        return shapes | linear("aux_head", dims.num_classes, dims.embed_dim)

    def check(self, config: ModelConfig) -> None:
        if not config.settings.skip_lam > 0:
            raise InputError(
                f"skip_lam is {config.settings.skip_lam:g}",
                "give the number that the model was trained with: 1, 2 or 3",
            )
        if config.patch_size % 2:
            raise InputError(f"patch_size is {config.patch_size}", "give a complete checkpoint")
