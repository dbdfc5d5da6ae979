"""ConvNeXt: convolutions of each channel by itself between linear layers on each place.

Liu et al., "A ConvNet for the 2020s", CVPR 2022; keys and numbers are those of
facebookresearch/ConvNeXt.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from svit_deploy.backbones.backbone import Backbone, Named
from svit_deploy.backbones.convnext.graph import ConvNextGraph
from svit_deploy.backbones.convnext.settings import KERNEL, ConvNextSettings
from svit_deploy.backbones.heads import PATCH_MEAN
from svit_deploy.backbones.stages import STAGES, told_depths
from svit_deploy.errors import InputError
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.keys import Dims, Shape, Tensors, linear, norm
from svit_deploy.model.sizes import Misfit, nearest_multiple

if TYPE_CHECKING:
    from svit_deploy.backbones.reference import BackboneReference

NATIVE = 224
"""The image size of all but the largest published models; the weights do not tell it."""


@dataclass(frozen=True)
class ConvNextDims(Dims):
    """`embed_dim` is the width of the first stage, `depth` counts all blocks."""

    depths: tuple[int, ...] = ()


class ConvNext(Backbone):
    title = "ConvNeXt"
    graph = ConvNextGraph
    head = PATCH_MEAN
    settings = ConvNextSettings
    told_by_weights = ("depths",)
    required = ("depths",)
    class_token = False
    has_positions = False

    def reference(self) -> type[BackboneReference]:
        from svit_deploy.backbones.convnext.reference import ConvNextReference

        return ConvNextReference

    def matches(self, keys: Collection[str]) -> bool:
        return "downsample_layers.0.0.weight" in keys

    def infer(self, family: str, tensors: Tensors, named: Named) -> ConvNextDims:
        width, _, patch, _ = tensors.shape("downsample_layers.0.0.weight", 4)
        depths = tuple(tensors.count(rf"stages\.{stage}") for stage in range(STAGES))
        return ConvNextDims(
            family=family,
            embed_dim=width,
            depth=sum(depths),
            mlp_dim=tensors.shape("stages.0.0.pwconv1.weight", 2)[0],
            patch_size=patch,
            num_patches=(NATIVE // max(patch, 1)) ** 2,
            num_classes=tensors.shape("head.weight", 2)[0],
            num_heads=1,
            depths=depths,
        )

    def dims_from_arch(self, family: str, arch: Arch) -> ConvNextDims:
        assert arch.embed_dim and arch.patch_size
        depths = told_depths(arch, "3,3,9,3")
        return ConvNextDims(
            family=family,
            embed_dim=arch.embed_dim,
            depth=sum(depths),
            mlp_dim=4 * arch.embed_dim,
            patch_size=arch.patch_size,
            num_patches=(NATIVE // arch.patch_size) ** 2,
            num_classes=arch.num_classes or 1000,
            num_heads=1,
            depths=depths,
        )

    def shapes(self, dims: Any) -> dict[str, Shape]:
        shapes, width, patch = dict[str, Shape](), dims.embed_dim, dims.patch_size
        shapes |= {"downsample_layers.0.0.weight": (width, 3, patch, patch)}
        shapes |= {"downsample_layers.0.0.bias": (width,)} | norm("downsample_layers.0.1", width)
        for stage in range(STAGES):
            width, hidden = dims.embed_dim << stage, dims.mlp_dim << stage
            if stage:
                name = f"downsample_layers.{stage}"
                shapes |= norm(f"{name}.0", width // 2)
                shapes[f"{name}.1.weight"] = (width, width // 2, 2, 2)
                shapes[f"{name}.1.bias"] = (width,)
            for block in range(dims.depths[stage]):
                name = f"stages.{stage}.{block}"
                shapes[f"{name}.dwconv.weight"] = (width, 1, KERNEL, KERNEL)
                shapes |= {f"{name}.dwconv.bias": (width,), f"{name}.gamma": (width,)}
                shapes |= norm(f"{name}.norm", width)
                shapes |= linear(f"{name}.pwconv1", hidden, width)
                shapes |= linear(f"{name}.pwconv2", width, hidden)
        return shapes | norm("norm", width) | linear("head", dims.num_classes, width)

    def misfit(self, config: ModelConfig) -> Misfit | None:
        step, (height, width) = config.patch_size << STAGES - 1, config.image_size
        nearest = nearest_multiple(config.image_size, step)
        if nearest == config.image_size:
            return None
        return Misfit(f"{height}x{width} pixels are no whole map of {step}x{step} each", nearest)

    def check(self, config: ModelConfig) -> None:
        depths = config.settings.depths
        if len(depths) != STAGES or min(depths) < 1 or sum(depths) != config.depth:
            raise InputError(
                f"depths {list(depths)} are not of {STAGES} stages",
                "give a complete ConvNeXt checkpoint",
            )

    def random(self, name: str, shape: Shape, rng: np.random.Generator) -> np.ndarray | None:
        """Layer scales of 1 that are not all alike; trained ones are of that order."""
        if name.endswith("gamma"):
            return np.asarray(0.3 * (1 + 0.2 * rng.standard_normal(shape)))
        return None
