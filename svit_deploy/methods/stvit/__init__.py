"""STViT: after a few blocks, some semantic tokens take the place of all image tokens.

Chang et al., "Making Vision Transformers Efficient from A Token Sparsification View", CVPR 2023,
where it is described on DeiT, Swin and Video Swin; the authors published code and weights of
STViT-R alone. The layout of keys is ours: the backbone's without `cls_token`, `pos_embed` of the
patches alone, and `semantic_tokens` `[1, K, C]`; of a training without them, zeros. What the paper
leaves open is a setting each (`settings`).

The block `generate_at` turns image tokens X into semantic tokens S by attention, from the maxima
P of X in a grid of K cells: S = P + attention(P to X), then its MLP. The next block adds the learnt
`semantic_tokens` to what looks at both again: S = S + attention(S + semantic_tokens to [S, X]),
then its MLP. All later blocks run on S alone; the head reads the mean of S after the final norm.
Nothing is selected. On Swin (`swin`) the first attention is that of each window.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from svit_deploy.backbones.tokens import GraphTokens, ReferenceTokens
from svit_deploy.errors import InputError
from svit_deploy.methods.method import Method
from svit_deploy.methods.semantic.sampling import HeadedStage, in_map
from svit_deploy.methods.stvit.graph import StvitGraph
from svit_deploy.methods.stvit.settings import (
    POOLS,
    Layout,
    StvitOnLvVitSettings,
    StvitSettings,
)
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig, TokenMode
from svit_deploy.model.keys import Shape, Tensors, linear, norm

if TYPE_CHECKING:
    from torch import Tensor

FIRST_RELEASE = {
    "pool_places": 0,
    "shortcut": False,
    "pooled_keys": True,
    "keep_learnt": True,
}
"""What manifests did not say yet when it was the only way."""


class Stvit(Method):
    """On a Vision Transformer."""

    title = "STViT"
    modes = (TokenMode.STATIC,)
    settings: ClassVar[type | None] = StvitSettings
    told_by_weights: ClassVar[tuple[str, ...]] = ("semantic", "pool_places")
    required: ClassVar[tuple[str, ...]] = ("semantic",)

    def matches(self, keys: Collection[str]) -> bool:
        return "semantic_tokens" in keys

    def upgrade(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**FIRST_RELEASE, **settings}

    def infer(self, tensors: Tensors, dims: Any) -> Any:
        dims = self.infer_semantic(tensors, dims)
        return replace(dims, num_patches=dims.num_patches + 1)  # of a table without a class token

    def infer_semantic(self, tensors: Tensors, dims: Any) -> Any:
        """The sizes with those of the method's own weights, whatever the backbone."""
        semantic = tensors.shape("semantic_tokens", 3)[1]
        pool = f"{POOLS[1]}.linear.weight"
        places = tensors.shape(pool, 2)[0] if pool in tensors.arrays else 0
        return replace(dims, semantic=semantic, pool_places=places)

    def dims_from_arch(self, dims: Any, arch: Arch) -> Any:
        places = arch.settings.get("pool_places", 0)
        return replace(dims, semantic=arch.settings["semantic"], pool_places=places)

    def shapes(self, shapes: dict[str, Shape], dims: Any) -> dict[str, Shape]:
        del shapes["cls_token"]
        shapes["pos_embed"] = (1, dims.num_patches, dims.embed_dim)
        return shapes | self.own_shapes(dims, dims.embed_dim)

    def own_shapes(self, dims: Any, width: int) -> dict[str, Shape]:
        """The method's own weights, where tokens have so many channels."""
        shapes: dict[str, Shape] = {"semantic_tokens": (1, dims.semantic, width)}
        for name, outputs in zip(POOLS, (1, dims.pool_places), strict=True):
            if dims.pool_places:
                shapes[f"{name}.conv.weight"] = (width, 1, 3, 3)
                shapes[f"{name}.conv.bias"] = (width,)
                shapes |= norm(f"{name}.norm", width) | linear(f"{name}.linear", outputs, width)
        return shapes

    def check(self, config: ModelConfig) -> None:
        count, start = config.settings.semantic, config.settings.generate_at
        if count < 1 or math.isqrt(count) ** 2 != count or math.isqrt(count) > min(config.grid):
            raise InputError(
                f"{count} semantic tokens are no square grid on {config.grid[0]}x{config.grid[1]} "
                "patches",
                "give another checkpoint, or a larger image",
            )
        if not 0 <= start <= config.depth - 2:
            raise InputError(
                f"generate_at is {start}, and the model has {config.depth} blocks",
                f"give a block from 0 to {config.depth - 2}",
            )
        self.check_pooling(config)

    def check_pooling(self, config: ModelConfig) -> None:
        """Raises InputError for weights of cells of another size, or of cells that differ."""
        places, cell = config.settings.pool_places, self.layout(config).sampling.cell
        if places and places != math.prod(cell or ()):
            found = f"have {cell[0]}x{cell[1]}" if cell else "are not of one size"
            raise InputError(
                f"pooling is learnt for cells of {places} tokens, and those of this image {found}",
                "give the size that the model was trained at, or another checkpoint",
            )

    def layout(self, config: ModelConfig) -> Layout:
        """What each block does."""
        rows, columns = config.grid
        stage = HeadedStage(0, rows, columns, config.embed_dim, config.num_heads)
        sampling = in_map(rows, columns, math.isqrt(config.settings.semantic))
        places = [(stage, block) for block in range(config.depth)]
        return Layout(places, sampling, config.settings.generate_at)

    def graph(self, writer: Any, rows: str) -> GraphTokens:
        return StvitGraph(writer, rows, self.layout(writer.config))

    def reference(self, backbone: Any, x: Tensor) -> ReferenceTokens:
        from svit_deploy.methods.stvit.reference import StvitReference

        return StvitReference(backbone, x, self.layout(backbone.config))


class StvitOnLvVit(Stvit):
    """On LV-ViT, without its second head: semantic tokens have no place to be labelled."""

    settings = StvitOnLvVitSettings

    def shapes(self, shapes: dict[str, Shape], dims: Any) -> dict[str, Shape]:
        shapes = super().shapes(shapes, dims)
        return {name: shape for name, shape in shapes.items() if not name.startswith("aux_head.")}
