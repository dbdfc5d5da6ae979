"""A Vision Transformer's plain PyTorch forward pass."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from svit_deploy.backbones.reference import BackboneReference, See
from svit_deploy.backbones.tokens import ReferenceTokens
from svit_deploy.model.positions import interpolate_positions
from svit_deploy.names import EMBEDDING, block_name


class VitReference(BackboneReference):
    def forward(self, images: Tensor, see: See) -> Generator[Any, Any, tuple[Any, ReferenceTokens]]:
        tokens = self.method.reference(self, self.embed(images))
        see(EMBEDDING, tokens.rows)
        for block in range(self.config.depth):
            yield from tokens.block(block)
            see(block_name(block), tokens.visible)
        return tokens.rows, tokens

    def embed(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` -> `[B, S, C]`."""
        config, weights = self.config, self.weights
        table = interpolate_positions(
            weights["pos_embed"].numpy(), config.prefix_tokens, config.native_grid, config.grid
        )
        prefix = ("cls_token", "dist_token")[: config.prefix_tokens]
        tokens = [weights[name].expand(len(images), -1, -1) for name in prefix]
        patches = self.patches(images).flatten(2).transpose(1, 2)
        return torch.cat([*tokens, patches], 1) + torch.from_numpy(table)

    def patches(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` -> `[B, C, rows, columns]`."""
        weight, bias = (self.weights[f"patch_embed.proj.{part}"] for part in ("weight", "bias"))
        return F.conv2d(images, weight, bias, stride=self.config.patch_size)
