"""Sizes and shapes of weights: what the key layouts of the methods have in common.

Canonical names are those of DeiT (timm): `cls_token, dist_token, pos_embed, patch_embed.proj,
blocks.{i}.{norm1, attn.qkv, attn.proj, norm2, mlp.fc1, mlp.fc2}, norm, head, head_dist`; each
method adds its own. Official layouts differ in names only: no tensor is split, joined or
transposed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from svit_deploy.errors import InputError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Dims:
    """What the shapes of the weights tell about a model.

    `family` is that whose keys they are. `num_patches` is the number of rows of the position
    embedding without its prefix tokens, `gate_dim` the hidden width of a gate (0 without gates),
    `num_heads` 0 where the weights do not tell, `semantic` the semantic tokens that a method
    learns, `pool_places` the tokens of a cell that it learns to pool, `fast_from` the first block
    of the third stage that has a fast way, `heads` what the weights tell of a task's heads.
    Backbones have subclasses.
    """

    family: str
    embed_dim: int
    depth: int
    mlp_dim: int
    patch_size: int
    num_patches: int
    num_classes: int
    distilled: bool = False
    num_gates: int = 0
    gate_dim: int = 0
    num_heads: int = 0
    semantic: int = 0
    pool_places: int = 0
    fast_from: int = 0
    heads: Any = None

    def __str__(self) -> str:
        gates = f", {self.num_gates} gates" if self.num_gates else ""
        return (
            f"embed_dim {self.embed_dim}, depth {self.depth}, patch_size {self.patch_size}, "
            f"num_classes {self.num_classes}{gates}{', distilled' if self.distilled else ''}"
        )


@dataclass(frozen=True)
class Tensors:
    """A checkpoint's tensors, asked for by the method that they may be of."""

    arrays: Mapping[str, np.ndarray]
    family: str

    def shape(self, key: str, rank: int) -> Shape:
        """The shape of a tensor; raises InputError if it is missing or has another rank."""
        if key not in self.arrays or self.arrays[key].ndim != rank:
            found = "is missing"
            if key in self.arrays:
                found = f"has shape {list(self.arrays[key].shape)}"
            raise InputError(
                f"{key} {found} in the checkpoint", f"give a complete {self.family} checkpoint"
            )
        return self.arrays[key].shape

    def count(self, group: str) -> int:
        """Distinct N among the keys `group.N.*`; a gap in the numbers is a missing key later."""
        found = (re.match(rf"{group}\.(\d+)\.", key) for key in self.arrays)
        return len({match[1] for match in found if match})


def linear(name: str, outputs: int, inputs: int) -> dict[str, Shape]:
    """Weight `[O, I]` and bias."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> dict[str, Shape]:
    """Weight and bias of a LayerNorm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def vit_shapes(dims: Dims) -> dict[str, Shape]:
    """Canonical name to shape, for every tensor of a DeiT."""
    width, hidden = dims.embed_dim, dims.mlp_dim
    shapes: dict[str, Shape] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, (2 if dims.distilled else 1) + dims.num_patches, width),
        "patch_embed.proj.weight": (width, 3, dims.patch_size, dims.patch_size),
        "patch_embed.proj.bias": (width,),
    }
    if dims.distilled:
        shapes["dist_token"] = (1, 1, width)
    shapes |= norm("norm", width) | linear("head", dims.num_classes, width)
    for i in range(dims.depth):
        shapes |= norm(f"blocks.{i}.norm1", width) | norm(f"blocks.{i}.norm2", width)
        shapes |= linear(f"blocks.{i}.attn.qkv", 3 * width, width)
        shapes |= linear(f"blocks.{i}.attn.proj", width, width)
        shapes |= linear(f"blocks.{i}.mlp.fc1", hidden, width)
        shapes |= linear(f"blocks.{i}.mlp.fc2", width, hidden)
    if dims.distilled:
        shapes |= linear("head_dist", dims.num_classes, width)
    return shapes
