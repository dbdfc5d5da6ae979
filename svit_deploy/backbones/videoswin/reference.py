"""Video Swin's plain PyTorch forward pass, window by window."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from svit_deploy.backbones.swin.reference import SwinReference, shifted_parts
from svit_deploy.backbones.swin.settings import CORNERS, HIDDEN
from svit_deploy.backbones.videoswin.settings import stages


class VideoSwinReference(SwinReference):
    def places(self) -> list[tuple[Any, int]]:
        return [(stage, block) for stage in stages(self.config) for block in range(stage.depth)]

    def sides(self, stage: int) -> tuple[int, int, int]:
        """Time, height and width of a stage's map."""
        config = self.config
        height, width = (side // config.patch_size for side in config.image_size)
        for _ in range(stage):
            height, width = (height + 1) // 2, (width + 1) // 2
        return config.frames // config.settings.patch_frames, height, width

    def embed(self, images: Tensor) -> Tensor:
        """Patches `[B, N, C]` of clips `[B, 3, T, H, W]`."""
        weight, bias = (self.convolved(f"patch_embed.proj.{kind}") for kind in ("weight", "bias"))
        x = F.conv3d(images, weight, bias, stride=weight.shape[2:])
        return self.norm(x.flatten(2).transpose(1, 2), "patch_embed.norm", self.block_eps)

    def attend(self, x: Tensor, stage: Any, block: int) -> Tensor:
        """Attention inside the windows of `[B, tokens, C]`, added to them."""
        name, sides = stage.block(block), self.sides(stage.index)
        full = self.config.settings.window_size
        window = [min(side, most) for side, most in zip(sides, full, strict=True)]
        shift = [
            most // 2 if block % 2 and side > most else 0
            for side, most in zip(sides, full, strict=True)
        ]
        y = self.norm(x, f"{name}.norm1", self.block_eps).unflatten(1, sides)
        beyond = [-side % length for side, length in zip(sides, window, strict=True)]
        y = F.pad(y, (0, 0, 0, beyond[2], 0, beyond[1], 0, beyond[0]))
        whole = y.shape[1:4]
        y = y.roll([-s for s in shift], (1, 2, 3))
        query, key, value = self.linear(y, f"{name}.attn.qkv").chunk(3, -1)
        parts = [shifted_parts(*axis) for axis in zip(whole, window, shift, strict=True)]
        region = 9 * parts[0][:, None, None] + 3 * parts[1][:, None] + parts[2]
        mixed, bias = torch.zeros_like(y), self.bias_of(name, prod(window))
        for corner in product(*(range(0, n, w) for n, w in zip(whole, window, strict=True))):
            place = tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))
            here = (slice(None), *place)
            q, k, v = (
                part[here].flatten(1, 3).unflatten(2, (stage.heads, -1)).transpose(1, 2)
                for part in (query, key, value)
            )
            label = region[place].flatten()
            scores = q @ k.transpose(2, 3) * self.scale(q.shape[-1]) + bias
            scores = scores + HIDDEN * (label[:, None] != label)
            seen = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
            mixed[here] = seen.unflatten(1, window)
        mixed = self.linear(mixed, f"{name}.attn.proj").roll(shift, (1, 2, 3))
        frames, height, width = sides
        return x + mixed[:, :frames, :height, :width].flatten(1, 3)

    def bias_of(self, name: str, inside: int) -> Tensor:
        """Added to the scores of a window's first tokens by the whole window's positions."""
        size = self.config.settings.window_size
        places = torch.cartesian_prod(*map(torch.arange, size))[:inside]
        depth, row, column = (
            places[:, None, axis] - places[None, :, axis] + size[axis] - 1 for axis in range(3)
        )
        height, width = 2 * size[1] - 1, 2 * size[2] - 1
        table = self.weights[f"{name}.attn.relative_position_bias_table"]
        return table[(depth * height + row) * width + column].permute(2, 0, 1)

    def shrink(self, x: Tensor, stage: Any) -> Tensor:
        """From the tokens of the stage before to those of this one, frame by frame."""
        name, sides = f"layers.{stage.index - 1}.downsample", self.sides(stage.index - 1)
        x = F.pad(x.unflatten(1, sides), (0, 0, 0, sides[2] % 2, 0, sides[1] % 2))
        x = torch.cat([x[:, :, row::2, column::2] for row, column in CORNERS], dim=-1)
        x = self.norm(x.flatten(1, 3), f"{name}.norm", self.block_eps)
        return F.linear(x, self.weights[f"{name}.reduction.weight"])
