"""STViT-R in detectors: semantic tokens of an image of any size.

changsn/STViT-R-Object-Detection @ 8b8eb1e1. Keys are those of the classifier, blocks inside a unit
are not: semantic tokens start from the pooled ones and look at image tokens alone, and what they
look at reaches beyond their window, and beyond the map. Which places are hidden is part of the
model, with its quirk (`pyramid_graph.StvitRPyramidGraph.hidden`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from svit_deploy.backbones.swin.pyramid import SwinPyramid
from svit_deploy.backbones.tokens import GraphTokens, ReferenceTokens
from svit_deploy.methods.stvitr import StvitR, StvitRSwin
from svit_deploy.methods.stvitr.pyramid_graph import ConvStemPyramidGraph, StvitRPyramidGraph
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.keys import Shape, Tensors
from svit_deploy.model.sizes import Misfit

if TYPE_CHECKING:
    from torch import Tensor

    from svit_deploy.backbones.reference import BackboneReference


class StvitRPyramidSwin(SwinPyramid, StvitRSwin):
    graph = ConvStemPyramidGraph

    def reference(self) -> type[BackboneReference]:
        from svit_deploy.methods.stvitr.pyramid_reference import ConvStemPyramidReference

        return ConvStemPyramidReference


class StvitRPyramid(StvitR):
    """It has none of the settings of classifiers."""

    settings: ClassVar[type | None] = None
    told_by_weights: ClassVar[tuple[str, ...]] = ()

    def settings_from_args(self, args: Mapping[str, Any]) -> dict[str, Any] | None:
        return None

    def upgrade(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return settings

    def infer(self, tensors: Tensors, dims: Any) -> Any:
        return dims

    def dims_from_arch(self, dims: Any, arch: Arch) -> Any:
        return dims

    def shapes(self, shapes: dict[str, Shape], dims: Any) -> dict[str, Shape]:
        return shapes

    def misfit(self, config: ModelConfig) -> Misfit | None:
        return None

    def graph(self, writer: Any, rows: str) -> GraphTokens:
        return StvitRPyramidGraph(writer, rows)

    def reference(self, backbone: Any, x: Tensor) -> ReferenceTokens:
        from svit_deploy.methods.stvitr.pyramid_reference import StvitRPyramidReference

        return StvitRPyramidReference(backbone, x)
