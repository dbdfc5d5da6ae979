"""STViT's plain PyTorch forward pass, and what is Swin's part of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from svit_deploy.backbones.swin.conv_stem_reference import ConvStemReference
from svit_deploy.backbones.swin.reference import SwinReference
from svit_deploy.backbones.tokens import ReferenceTokens
from svit_deploy.backbones.videoswin.reference import VideoSwinReference
from svit_deploy.methods.semantic.reference import begin, look, look_inside
from svit_deploy.methods.stvit.settings import POOLS, Layout


class StvitReference(ReferenceTokens):
    def __init__(self, backbone: Any, rows: Tensor, layout: Layout) -> None:
        super().__init__(backbone, rows)
        self.layout, self.image = layout, rows

    def step(self, block: int) -> None:
        layout, settings, backbone = self.layout, self.config.settings, self.backbone
        stage, number = layout.places[block]
        if block < layout.start:
            super().step(block)
        elif block == layout.start:
            self.image = self.rows.unflatten(1, (layout.maps, -1)).flatten(0, 1)
            self.rows = begin(
                backbone,
                self.image,
                layout.sampling,
                stage,
                number,
                shortcut=settings.shortcut,
                pooled_keys=settings.pooled_keys,
                pool=self.pool if settings.pool_places else F.adaptive_max_pool2d,
            )
        elif block == layout.start + 1:
            query = self.rows + backbone.weights["semantic_tokens"]
            start = query if settings.keep_learnt else self.rows
            both = torch.cat([self.rows, self.image], dim=1)
            self.rows = look(backbone, query, both, stage, number, start)
        else:
            local = block in layout.local
            self.rows = look_inside(
                backbone,
                self.rows,
                layout.sampling,
                stage,
                number,
                local=local,
                maps=layout.together,
            )

    def for_head(self) -> Tensor:
        return self.rows.unflatten(0, (-1, self.layout.maps)).flatten(1, 2)

    def pool(self, windows: Tensor, side: int) -> Tensor:
        """Of each cell of `[W, C, rows, columns]` a mean with learnt weights, side by side."""
        rows, columns = (
            [slice(i * n // side, math.ceil((i + 1) * n / side)) for i in range(side)]
            for n in windows.shape[2:]
        )
        cells = torch.stack([windows[..., r, c] for r in rows for c in columns], 1)
        scores = self.scores(cells.flatten(0, 1), POOLS[0]).reshape(*cells.shape[:2], -1)

        def means(scores: Tensor) -> Tensor:
            found = torch.einsum("wsp,wscp->wcs", scores.softmax(-1), cells.flatten(3))
            return found.unflatten(2, (side, side))

        offsets = self.scores(means(scores), POOLS[1]).flatten(1, 2)
        return means(scores + offsets)

    def scores(self, x: Tensor, name: str) -> Tensor:
        """What a small network makes of each place of `[N, C, h, w]`: `[N, h, w, outputs]`."""
        backbone = self.backbone
        weight, bias = (backbone.convolved(f"{name}.conv.{kind}") for kind in ("weight", "bias"))
        x = F.conv2d(x, weight, bias, padding=weight.shape[2] // 2, groups=len(weight))
        x = backbone.norm(x.permute(0, 2, 3, 1), f"{name}.norm", backbone.block_eps)
        found: Tensor = backbone.linear(F.gelu(x), f"{name}.linear")
        return found


class WideningReference(SwinReference):
    def shrink(self, x: Tensor, stage: Any) -> Tensor:
        name = f"layers.{stage.index - 1}.widen"
        if f"{name}.weight" not in self.weights:
            return super().shrink(x, stage)
        if f"{name}_norm.weight" in self.weights:
            x = self.norm(x, f"{name}_norm", self.block_eps)
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))


class StvitSwinReference(WideningReference, ConvStemReference):
    """With a stem of convolutions."""


class StvitVideoReference(WideningReference, VideoSwinReference):
    """Of videos."""
