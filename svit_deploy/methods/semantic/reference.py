"""Blocks of semantic tokens in plain PyTorch, on maps `[M, tokens, C]`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from svit_deploy.methods.semantic.sampling import Sampling

Pool = Callable[[Tensor, int], Tensor]


def begin(
    reference: Any,
    x: Tensor,
    sampling: Sampling,
    stage: Any,
    block: int,
    *,
    shortcut: bool,
    pooled_keys: bool = True,
    pool: Pool = F.adaptive_max_pool2d,
) -> Tensor:
    """The first semantic tokens of image tokens, in raster order; see `graph.SemanticGraph`.

    Args:
        pool: from windows `[W, C, rows, columns]` and the side of what is wanted of each.
    """
    name, maps, width, windows = stage.block(block), len(x), stage.width, sampling.windows
    image = x.unflatten(1, (sampling.rows, sampling.columns))
    height, length = sampling.rows // windows, sampling.columns // windows
    tiles = image.reshape(maps, windows, height, windows, length, width).transpose(2, 3)
    tiles = tiles.reshape(-1, height, length, width).permute(0, 3, 1, 2)
    cells = pool(tiles, sampling.sample)
    convolution = f"{name}.conv_pos.proj.0"
    if f"{convolution}.weight" in reference.weights:
        weight, bias = (reference.convolved(f"{convolution}.{kind}") for kind in ("weight", "bias"))
        cells = cells + F.conv2d(cells, weight, bias, padding=1, groups=width)
    pooled = cells.flatten(2).transpose(1, 2)  # [M * windows², sample², C]
    keys = F.unfold(image.permute(0, 3, 1, 2), sampling.around, stride=sampling.stride)
    keys = keys.reshape(maps, width, sampling.seen, -1).permute(0, 3, 2, 1)
    keys = keys.flatten(0, 1)
    if pooled_keys:
        keys = torch.cat([pooled, keys], dim=1)
    query, keys = (reference.norm(v, f"{name}.norm1", reference.block_eps) for v in (pooled, keys))
    found = cross(reference, query, keys, stage, block)
    s = reference.add(pooled if shortcut else torch.zeros_like(pooled), found)
    return feed(reference, by_window(s, sampling, back=True), name)


def by_window(s: Tensor, sampling: Sampling, back: bool = False, maps: int = 1) -> Tensor:
    """Semantic tokens `[M, count, C]` -> `[M / maps * windows², maps * sample², C]`, or back.

    Args:
        maps: neighbours whose windows at one place are one window.
    """
    windows, sample, width = sampling.windows, sampling.sample, s.shape[-1]
    if back:
        s = s.reshape(-1, windows, windows, maps, sample, sample, width)
        return s.permute(0, 3, 1, 4, 2, 5, 6).reshape(-1, sampling.count, width)
    s = s.reshape(-1, maps, windows, sample, windows, sample, width)
    return s.permute(0, 2, 4, 1, 3, 5, 6).reshape(-1, maps * sampling.in_window, width)


def look_inside(
    reference: Any,
    s: Tensor,
    sampling: Sampling,
    stage: Any,
    block: int,
    *,
    local: bool,
    maps: int = 1,
) -> Tensor:
    """Semantic tokens look at each other, all or those of their window; see `by_window`."""
    if not local:
        return look(reference, s, s, stage, block)
    s = by_window(s, sampling, maps=maps)
    return by_window(look(reference, s, s, stage, block), sampling, back=True, maps=maps)


def look(
    reference: Any, x: Tensor, at: Tensor, stage: Any, block: int, start: Tensor | None = None
) -> Tensor:
    """A block whose tokens `[G, T, C]` look at others `[G, K, C]`, added to `start` or to them."""
    name = stage.block(block)
    query, keys = (reference.norm(v, f"{name}.norm1", reference.block_eps) for v in (x, at))
    found = cross(reference, query, keys, stage, block)
    return feed(reference, reference.add(x if start is None else start, found), name)


def cross(reference: Any, x: Tensor, at: Tensor, stage: Any, block: int) -> Tensor:
    """Attention of normed tokens `[G, T, C]` to normed others `[G, K, C]`, projected and scaled."""
    name, bias = f"{stage.block(block)}.attn", None
    if f"{name}.relative_position_bias_table" in reference.weights:
        bias = reference.bias(stage.block(block), math.isqrt(x.shape[1]))
    query = project(reference, x, name, "q").unflatten(2, (stage.heads, -1)).transpose(1, 2)
    kv = project(reference, at, name, "kv").unflatten(2, (2, stage.heads, -1))
    key, value = kv.permute(2, 0, 3, 1, 4)
    scale = reference.scale(query.shape[-1])
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    mixed = mixed.transpose(1, 2).flatten(2)
    return scaled(reference, mixed, f"{name}.proj", f"{stage.block(block)}.layer_scale_1")


def project(reference: Any, x: Tensor, name: str, part: str) -> Tensor:
    """Queries ("q"), or keys and values, which a checkpoint may keep in one with the queries."""
    whole = f"{name}.qkv" if f"{name}.qkv.weight" in reference.weights else f"{name}.{part}"
    weight, bias = (reference.weights.get(f"{whole}.{kind}") for kind in ("weight", "bias"))
    if whole != f"{name}.{part}":
        rows = slice(x.shape[-1]) if part == "q" else slice(x.shape[-1], None)
        weight, bias = weight[rows], None if bias is None else bias[rows]
    found: Tensor = reference.product(x, f"{name}.{part}", weight, bias)
    return found


def scaled(reference: Any, x: Tensor, name: str, scale: str) -> Tensor:
    """A linear layer, and the layer scale behind it, if there is one."""
    if scale in reference.weights:
        found: Tensor = reference.scaled_linear(x, name, scale)
    else:
        found = reference.linear(x, name)
    return found


def feed(reference: Any, x: Tensor, name: str) -> Tensor:
    """The second half of a block."""
    hidden = reference.norm(x, f"{name}.norm2", reference.block_eps)
    hidden = F.gelu(reference.linear(hidden, f"{name}.mlp.fc1"))
    change = scaled(reference, hidden, f"{name}.mlp.fc2", f"{name}.layer_scale_2")
    found: Tensor = reference.add(x, change)
    return found
