"""Swin as a backbone of detectors: feature maps of each stage, of images of any size.

Keys and numbers are those of SwinTransformer/Swin-Transformer-Object-Detection, without
`backbone.`: a norm behind each stage in the place of the final one, and no head. Maps that windows
do not tile get zeros behind the norm at the right and at the bottom, which are not masked; every
second block is shifted, however small the map is.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from svit_deploy.backbones.backbone import Backbone
from svit_deploy.backbones.stages import STAGES
from svit_deploy.backbones.swin import Swin, SwinDims
from svit_deploy.backbones.swin.pyramid_graph import SwinPyramidGraph
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.keys import Shape, Tensors, norm
from svit_deploy.model.sizes import Misfit

if TYPE_CHECKING:
    from svit_deploy.backbones.reference import BackboneReference

STEP = 32
"""Height and width must be multiples of it: the coarsest feature map has this stride."""


class SwinPyramid(Swin):
    tasks = ("backbone", "cascade")
    graph = SwinPyramidGraph
    head = None
    step = STEP

    def reference(self) -> type[BackboneReference]:
        from svit_deploy.backbones.swin.pyramid_reference import SwinPyramidReference

        return SwinPyramidReference

    def matches(self, keys: Collection[str]) -> bool:
        return super().matches(keys) and "norm0.weight" in keys

    def dims_from_arch(self, family: str, arch: Arch) -> SwinDims:
        """With Swin's patches and windows, if the architecture says nothing of them."""
        size, patch = arch.image_size or (224, 224), arch.patch_size or 4
        return super().dims_from_arch(family, replace(arch, image_size=size, patch_size=patch))

    def classes(self, tensors: Tensors) -> int:
        return 0

    def head_shapes(self, dims: Any) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        for stage, width in enumerate(self.feature_widths(dims)):
            shapes |= norm(f"norm{stage}", width)
        return shapes

    def feature_widths(self, sized: Any) -> tuple[int, ...]:
        return tuple(sized.embed_dim << stage for stage in range(STAGES))

    def misfit(self, config: ModelConfig) -> Misfit | None:
        return Backbone.misfit(self, config)
