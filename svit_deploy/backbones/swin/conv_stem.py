"""A Swin whose patches come from two convolutions, as that of STViT and STViT-R.

Keys and numbers are those of changsn/STViT-R @ b4a27a07.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from svit_deploy.backbones.swin import Swin
from svit_deploy.backbones.swin.conv_stem_graph import ConvStemGraph
from svit_deploy.model.keys import Shape, Tensors, norm

if TYPE_CHECKING:
    from svit_deploy.backbones.reference import BackboneReference


class ConvStemSwin(Swin):
    graph = ConvStemGraph
    folds_norms = True

    def reference(self) -> type[BackboneReference]:
        from svit_deploy.backbones.swin.conv_stem_reference import ConvStemReference

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
