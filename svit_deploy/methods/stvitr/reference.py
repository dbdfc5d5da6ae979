"""STViT-R's plain PyTorch forward pass."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from svit_deploy.backbones.swin.reference import SwinReference
from svit_deploy.backbones.swin.settings import SwinStage, places
from svit_deploy.backbones.tokens import ReferenceTokens
from svit_deploy.methods.stvitr.settings import (
    AROUND,
    BN_EPS,
    IN_MAP,
    IN_WINDOW,
    SAMPLE,
    SEMANTIC,
    SIDE,
    STRIDE,
    UNIT,
    WINDOWS,
)


class ConvStemReference(SwinReference):
    def embed(self, images: Tensor) -> Tensor:
        """Image tokens `[B, N, C]`."""
        x, weights = images, self.weights
        for part in (0, 2):
            name = f"patch_embed.proj.{part}"
            x = F.conv2d(x, weights[f"{name}.c.weight"], stride=2, padding=1)
            mean, variance = weights[f"{name}.bn.running_mean"], weights[f"{name}.bn.running_var"]
            scale, shift = weights[f"{name}.bn.weight"], weights[f"{name}.bn.bias"]
            x = F.hardswish(F.batch_norm(x, mean, variance, scale, shift, eps=BN_EPS))
        return x.flatten(2).transpose(1, 2)


class StvitRReference(ReferenceTokens):
    def __init__(self, backbone: Any, rows: Tensor) -> None:
        super().__init__(backbone, rows)
        self.image = self.semantic = rows

    def map(self) -> Tensor:
        return self.image

    def put_map(self, x: Tensor) -> None:
        self.rows = self.image = x

    def step(self, block: int) -> None:
        stage, number = places(self.config)[block]
        role = number % UNIT if stage.index == 2 else 0
        if role == 0:
            self.rows = self.image = self.backbone.plain_block(self.image, block)
        elif role == 5:
            found = look(self.backbone, self.image, self.semantic, stage, number)
            self.rows = self.image = found
        else:
            self.semantic = next_semantic(self.backbone, self.semantic, self.image, stage, number)
            self.rows = self.semantic

    def accept(self, visible: Tensor) -> None:
        if self.rows is self.image:
            self.image = visible
        else:
            self.semantic = visible
        self.rows = visible


def next_semantic(reference: Any, s: Tensor, x: Tensor, stage: SwinStage, block: int) -> Tensor:
    """What a block inside a unit makes of the semantic tokens `[B, 36, C]`."""
    role, name = block % UNIT, stage.block(block)
    if role == 1:
        return begin(reference, x, stage, block)
    if role == 2:
        both = torch.cat([s, x], dim=1)
        if block < UNIT and reference.config.settings.use_global:
            s = s + reference.weights["layers.2.semantic_token2"]
        return look(reference, s, both, stage, block)
    if role == IN_MAP:
        return look(reference, s, s, stage, block)
    side = (WINDOWS, SAMPLE, WINDOWS, SAMPLE)
    normed = reference.norm(s, f"{name}.norm1", reference.block_eps)
    windows = normed.unflatten(1, side).transpose(2, 3).reshape(-1, SAMPLE**2, stage.width)
    mixed = cross(reference, windows, windows, stage, block)
    mixed = mixed.reshape(len(s), WINDOWS, WINDOWS, SAMPLE, SAMPLE, -1).transpose(2, 3)
    s = s + mixed.reshape(s.shape)
    return feed(reference, s, name)


def begin(reference: Any, x: Tensor, stage: SwinStage, block: int) -> Tensor:
    """The semantic tokens of a unit, from its image tokens `[B, 196, C]`."""
    name, batch, width = stage.block(block), len(x), stage.width
    image = x.unflatten(1, (SIDE, SIDE))
    side = SIDE // WINDOWS
    windows = image.reshape(batch, WINDOWS, side, WINDOWS, side, width).transpose(2, 3)
    windows = windows.reshape(-1, side, side, width).permute(0, 3, 1, 2)
    cells = F.adaptive_max_pool2d(windows, SAMPLE)
    if reference.config.settings.use_conv_pos:
        convolution = f"{name}.conv_pos.proj.0"
        weight, bias = (reference.convolved(f"{convolution}.{kind}") for kind in ("weight", "bias"))
        cells = cells + F.conv2d(cells, weight, bias, padding=1, groups=width)
    pooled = cells.flatten(2).transpose(1, 2)  # [B * 4, 9, C]
    around = F.unfold(image.permute(0, 3, 1, 2), AROUND, stride=STRIDE)
    around = around.reshape(batch, width, AROUND**2, -1).permute(0, 3, 2, 1).flatten(0, 1)
    keys = torch.cat([pooled, around], dim=1)
    query, keys = (reference.norm(v, f"{name}.norm1", reference.block_eps) for v in (pooled, keys))
    s = cross(reference, query, keys, stage, block)
    if reference.config.settings.shortcut:
        s = pooled + s
    s = s.reshape(batch, WINDOWS, WINDOWS, SAMPLE, SAMPLE, width).transpose(2, 3)
    return feed(reference, s.reshape(batch, SEMANTIC, width), name)


def look(reference: Any, x: Tensor, at: Tensor, stage: SwinStage, block: int) -> Tensor:
    """A block whose tokens `[B, T, C]` look at others `[B, K, C]`."""
    name = stage.block(block)
    query, keys = (reference.norm(v, f"{name}.norm1", reference.block_eps) for v in (x, at))
    return feed(reference, x + cross(reference, query, keys, stage, block), name)


def cross(reference: Any, x: Tensor, at: Tensor, stage: SwinStage, block: int) -> Tensor:
    """Attention of normed tokens `[B, T, C]` to normed others `[B, K, C]`, projected and scaled."""
    name, bias = stage.block(block), None
    if reference.config.settings.relative_pos and block % UNIT in (IN_WINDOW, IN_MAP):
        bias = reference.bias(name, math.isqrt(x.shape[1]))
    query = reference.linear(x, f"{name}.attn.q").unflatten(2, (stage.heads, -1)).transpose(1, 2)
    kv = reference.linear(at, f"{name}.attn.kv").unflatten(2, (2, stage.heads, -1))
    key, value = kv.permute(2, 0, 3, 1, 4)
    scale = reference.scale(query.shape[-1])
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    mixed = mixed.transpose(1, 2).flatten(2)
    return reference.scaled_linear(mixed, f"{name}.attn.proj", f"{name}.layer_scale_1")


def feed(reference: Any, x: Tensor, name: str) -> Tensor:
    hidden = reference.norm(x, f"{name}.norm2", reference.block_eps)
    hidden = F.gelu(reference.linear(hidden, f"{name}.mlp.fc1"))
    return x + reference.scaled_linear(hidden, f"{name}.mlp.fc2", f"{name}.layer_scale_2")
