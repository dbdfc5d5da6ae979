"""DeiT's Vision Transformer: patches, a class token, equal blocks.

Touvron et al., "Training data-efficient image transformers & distillation through attention",
ICML 2021; facebookresearch/deit @ 7e160fe4.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from svit_deploy.backbones.backbone import Backbone, Named
from svit_deploy.backbones.vit.graph import VitGraph
from svit_deploy.model.arch import Arch
from svit_deploy.model.keys import Dims, Shape, Tensors, vit_shapes

if TYPE_CHECKING:
    from svit_deploy.backbones.reference import BackboneReference


class Vit(Backbone):
    title = "DeiT"
    graph = VitGraph

    def reference(self) -> type[BackboneReference]:
        from svit_deploy.backbones.vit.reference import VitReference

        return VitReference

    def matches(self, keys: Collection[str]) -> bool:
        return True  # the others are asked first

    def is_unused(self, key: str) -> bool:
        return key.endswith(".attn.out_zero_mask")  # zeros that ATS saves with such weights

    def infer(self, family: str, tensors: Tensors, named: Named) -> Dims:
        width, _, patch_size, _ = tensors.shape(named("patch_embed.proj.weight"), 4)
        distilled = "dist_token" in tensors.arrays
        return Dims(
            family=family,
            embed_dim=width,
            depth=tensors.count("blocks"),
            mlp_dim=tensors.shape(named("blocks.0.mlp.fc1.weight"), 2)[0],
            patch_size=patch_size,
            num_patches=tensors.shape("pos_embed", 3)[1] - 1 - distilled,
            num_classes=tensors.shape("head.weight", 2)[0],
            distilled=distilled,
        )

    def dims_from_arch(self, family: str, arch: Arch) -> Dims:
        assert arch.embed_dim and arch.depth and arch.patch_size and arch.image_size
        height, width = arch.image_size
        return Dims(
            family=family,
            embed_dim=arch.embed_dim,
            depth=arch.depth,
            mlp_dim=4 * arch.embed_dim,
            patch_size=arch.patch_size,
            num_patches=(height // arch.patch_size) * (width // arch.patch_size),
            num_classes=arch.num_classes or 1000,
            distilled=bool(arch.distilled),
        )

    def shapes(self, dims: Any) -> dict[str, Shape]:
        return vit_shapes(dims)
