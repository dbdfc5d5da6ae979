"""Swin's plain PyTorch forward pass."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from svit_deploy.backbones.reference import StagedReference
from svit_deploy.backbones.swin.settings import CORNERS, HIDDEN, SwinStage, places


class SwinReference(StagedReference):
    def places(self) -> list[tuple[Any, int]]:
        return places(self.config)

    def embed(self, images: Tensor) -> Tensor:
        """Patches `[B, N, C]` of images."""
        weights = self.weights
        weight, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
        x = F.conv2d(images, weight, bias, stride=self.config.patch_size)
        return self.norm(x.flatten(2).transpose(1, 2), "patch_embed.norm", self.block_eps)

    def mix(self, x: Tensor, block: int) -> tuple[Tensor, Tensor]:
        x = self.attend(x, *self.places()[block])
        return x, x

    def feed(self, x: Tensor, block: int) -> Tensor:
        name = self.name_of(block)
        y = self.norm(x, f"{name}.norm2", self.block_eps)
        return self.linear(F.gelu(self.linear(y, f"{name}.mlp.fc1")), f"{name}.mlp.fc2")

    def attend(self, x: Tensor, stage: SwinStage, block: int) -> Tensor:
        """Attention inside the windows of `[B, tokens, C]`, added to them."""
        name, side, shift = stage.block(block), stage.window, stage.shift(block)
        batch, down, across = len(x), stage.rows // side, stage.columns // side
        y = self.norm(x, f"{name}.norm1", self.block_eps)
        y = y.unflatten(1, (stage.rows, stage.columns)).roll((-shift, -shift), (1, 2))
        y = (
            y.reshape(batch, down, side, across, side, -1)
            .transpose(2, 3)
            .reshape(-1, side**2, stage.width)
        )
        qkv = self.linear(y, f"{name}.attn.qkv").unflatten(2, (3, stage.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(2, 3) * self.scale(query.shape[-1])
        scores = scores + self.bias(name, side)
        if shift:
            region = torch.zeros(stage.rows, stage.columns)
            cuts = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
            for number, (rows, columns) in enumerate((r, c) for r in cuts for c in cuts):
                region[rows, columns] = number
            region = region.reshape(down, side, across, side).transpose(1, 2).reshape(-1, side**2)
            mask = (region[:, None] != region[:, :, None]) * HIDDEN
            scores = (scores.unflatten(0, (batch, -1)) + mask[:, None]).flatten(0, 1)
        y = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        y = self.linear(y, f"{name}.attn.proj")
        y = y.reshape(batch, down, across, side, side, -1).transpose(2, 3)
        y = y.reshape(batch, stage.rows, stage.columns, -1).roll((shift, shift), (1, 2))
        return x + y.flatten(1, 2)

    def bias(self, name: str, side: int) -> Tensor:
        """Added to the scores of a window's tokens by their positions `[H, K, K]`."""
        places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
        table = self.weights[f"{name}.attn.relative_position_bias_table"]
        span = math.isqrt(len(table))  # of windows as large or larger
        apart = places[:, None] - places[None] + (span - 1) // 2
        return table[apart[..., 0] * span + apart[..., 1]].permute(2, 0, 1)

    def shrink(self, x: Tensor, stage: SwinStage) -> Tensor:
        """From the tokens of the stage before to those of this one."""
        name = f"layers.{stage.index - 1}.downsample"
        x = x.unflatten(1, (2 * stage.rows, 2 * stage.columns))
        x = torch.cat([x[:, row::2, column::2] for row, column in CORNERS], dim=-1).flatten(1, 2)
        x = self.norm(x, f"{name}.norm", self.block_eps)
        return F.linear(x, self.weights[f"{name}.reduction.weight"])


def shifted_parts(length: int, side: int, shift: int) -> Tensor:
    """The part of an axis that each place of a shifted map is in."""
    parts = torch.zeros(length, dtype=torch.long)
    if shift:
        parts[-side:] = 1
        parts[-shift:] = 2
    return parts
