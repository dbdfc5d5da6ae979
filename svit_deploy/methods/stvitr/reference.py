"""STViT-R's plain PyTorch forward pass."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from svit_deploy.methods.stvitr.settings import (
    AROUND,
    BN_EPS,
    SAMPLE,
    SEMANTIC,
    SIDE,
    STRIDE,
    UNIT,
    WINDOWS,
)
from svit_deploy.methods.swin.reference import merge, swin_block
from svit_deploy.methods.swin.settings import Stage, stages
from svit_deploy.models.reference import Passed, Reference


def forward(reference: Reference, images: Tensor) -> Passed:
    """See `Method.forward`."""
    x = stem(reference, images)
    maps = [x]
    semantic = x
    for stage in stages(reference.config):
        for block in range(stage.depth):
            if stage.index and not block:
                x = merge(reference, x, stage)
            role = block % UNIT if stage.index == 2 else 0
            if role == 0:
                x = swin_block(reference, x, stage, block)
            elif role == 5:
                x = look(reference, x, semantic, stage, block)
            else:
                semantic = next_semantic(reference, semantic, x, stage, block)
            maps.append(x if role in (0, 5) else semantic)
    return Passed(reference.classify_mean(x), maps)


def stem(reference: Reference, images: Tensor) -> Tensor:
    """Image tokens `[B, N, C]`."""
    x, weights = images, reference.weights
    for part in (0, 2):
        name = f"patch_embed.proj.{part}"
        x = F.conv2d(x, weights[f"{name}.c.weight"], stride=2, padding=1)
        mean, variance = weights[f"{name}.bn.running_mean"], weights[f"{name}.bn.running_var"]
        scale, shift = weights[f"{name}.bn.weight"], weights[f"{name}.bn.bias"]
        x = F.hardswish(F.batch_norm(x, mean, variance, scale, shift, eps=BN_EPS))
    return x.flatten(2).transpose(1, 2)


def next_semantic(reference: Reference, s: Tensor, x: Tensor, stage: Stage, block: int) -> Tensor:
    """What a block inside a unit makes of the semantic tokens `[B, 36, C]`."""
    role, name = block % UNIT, stage.block(block)
    if role == 1:
        return begin(reference, x, stage, block)
    if role == 2:
        both = torch.cat([s, x], dim=1)
        if block < UNIT and "layers.2.semantic_token2" in reference.weights:
            s = s + reference.weights["layers.2.semantic_token2"]
        return look(reference, s, both, stage, block)
    if role == 4:
        return look(reference, s, s, stage, block)
    side = (WINDOWS, SAMPLE, WINDOWS, SAMPLE)
    normed = reference.norm(s, f"{name}.norm1", reference.block_eps)
    windows = normed.unflatten(1, side).transpose(2, 3).reshape(-1, SAMPLE**2, stage.width)
    mixed = cross(reference, windows, windows, stage, name)
    mixed = mixed.reshape(len(s), WINDOWS, WINDOWS, SAMPLE, SAMPLE, -1).transpose(2, 3)
    s = s + reference.weights[f"{name}.layer_scale_1"] * mixed.reshape(s.shape)
    return feed(reference, s, name)


def begin(reference: Reference, x: Tensor, stage: Stage, block: int) -> Tensor:
    """The semantic tokens of a unit, from its image tokens `[B, 196, C]`."""
    name, batch, width = stage.block(block), len(x), stage.width
    image = x.unflatten(1, (SIDE, SIDE))
    side = SIDE // WINDOWS
    windows = image.reshape(batch, WINDOWS, side, WINDOWS, side, width).transpose(2, 3)
    windows = windows.reshape(-1, side, side, width).permute(0, 3, 1, 2)
    pooled = F.adaptive_max_pool2d(windows, SAMPLE).flatten(2).transpose(1, 2)  # [B * 4, 9, C]
    around = F.unfold(image.permute(0, 3, 1, 2), AROUND, stride=STRIDE)
    around = around.reshape(batch, width, AROUND**2, -1).permute(0, 3, 2, 1).flatten(0, 1)
    keys = torch.cat([pooled, around], dim=1)
    query, keys = (reference.norm(v, f"{name}.norm1", reference.block_eps) for v in (pooled, keys))
    s = reference.weights[f"{name}.layer_scale_1"] * cross(reference, query, keys, stage, name)
    if reference.config.settings.shortcut:
        s = pooled + s
    s = s.reshape(batch, WINDOWS, WINDOWS, SAMPLE, SAMPLE, width).transpose(2, 3)
    return feed(reference, s.reshape(batch, SEMANTIC, width), name)


def look(reference: Reference, x: Tensor, at: Tensor, stage: Stage, block: int) -> Tensor:
    """A block whose tokens `[B, T, C]` look at others `[B, K, C]`."""
    name = stage.block(block)
    query, keys = (reference.norm(v, f"{name}.norm1", reference.block_eps) for v in (x, at))
    mixed = cross(reference, query, keys, stage, name)
    return feed(reference, x + reference.weights[f"{name}.layer_scale_1"] * mixed, name)


def cross(reference: Reference, x: Tensor, at: Tensor, stage: Stage, name: str) -> Tensor:
    """Attention of normed tokens `[B, T, C]` to normed others `[B, K, C]`, and its projection."""
    query = reference.linear(x, f"{name}.attn.q").unflatten(2, (stage.heads, -1)).transpose(1, 2)
    kv = reference.linear(at, f"{name}.attn.kv").unflatten(2, (2, stage.heads, -1))
    key, value = kv.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    return reference.linear(mixed, f"{name}.attn.proj")


def feed(reference: Reference, x: Tensor, name: str) -> Tensor:
    hidden = reference.norm(x, f"{name}.norm2", reference.block_eps)
    hidden = F.gelu(reference.linear(hidden, f"{name}.mlp.fc1"))
    scale = reference.weights[f"{name}.layer_scale_2"]
    return x + scale * reference.linear(hidden, f"{name}.mlp.fc2")
