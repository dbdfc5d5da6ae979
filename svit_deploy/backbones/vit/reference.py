"""A Vision Transformer's plain PyTorch forward pass."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from svit_deploy.backbones.reference import BackboneReference
from svit_deploy.backbones.tokens import ReferenceTokens, See
from svit_deploy.model.positions import interpolate_positions
from svit_deploy.names import EMBEDDING, block_name


class VitReference(BackboneReference):
    def forward(self, images: Tensor, see: See) -> Generator[Any, Any, tuple[Any, ReferenceTokens]]:
        tokens = self.method.reference(self, self.embed(images))
        tokens.show(EMBEDDING, see)
        for block in range(self.config.depth):
            yield from tokens.block(block)
            tokens.show(block_name(block), see)
        return tokens.for_head(), tokens

    def embed(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` -> `[B, S, C]`."""
        config, weights = self.config, self.exact
        table = torch.from_numpy(
            interpolate_positions(
                weights["pos_embed"].numpy(), config.prefix_tokens, config.native_grid, config.grid
            )
        )
        patches = self.patches(images).flatten(2).transpose(1, 2)
        patches = patches + self.rounded(table[:, config.prefix_tokens :])
        if not config.prefix_tokens:
            return patches
        names = ("cls_token", "dist_token")[: config.prefix_tokens]
        prefix = torch.cat([weights[name] for name in names], 1) + table[:, : config.prefix_tokens]
        return torch.cat([self.rounded(prefix).expand(len(images), -1, -1), patches], 1)

    def patches(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` -> `[B, C, rows, columns]`."""
        weight, bias = (self.weights[f"patch_embed.proj.{part}"] for part in ("weight", "bias"))
        return F.conv2d(images, weight, bias, stride=self.config.patch_size)
