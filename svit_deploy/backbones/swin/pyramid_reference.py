"""The plain PyTorch forward of a Swin for detectors."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from svit_deploy.backbones.swin.reference import SwinReference, shifted_parts
from svit_deploy.backbones.swin.settings import HIDDEN, SwinStage, stages
from svit_deploy.backbones.tokens import ReferenceTokens, See


class SwinPyramidReference(SwinReference):
    """Four maps `[B, C << stage, h, w]` of strides 4, 8, 16 and 32."""

    def forward(self, images: Tensor, see: See) -> Generator[Any, Any, tuple[Any, ReferenceTokens]]:
        self.stages = [
            replace(stage, rows=images.shape[2] // stride, columns=images.shape[3] // stride)
            for stage, stride in zip(stages(self.config), (4, 8, 16, 32), strict=True)
        ]
        tokens, number, maps = self.method.reference(self, self.embed(images)), 0, []
        tokens.show("embedding", see)
        for stage in self.stages:
            if stage.index:
                tokens.put_map(self.shrink(tokens.map(), stage))
            for _ in range(stage.depth):
                yield from tokens.block(number)
                tokens.show(f"block_{number}.out", see)
                number += 1
            normed = self.norm(tokens.map(), f"norm{stage.index}", self.block_eps)
            maps.append(normed.transpose(1, 2).unflatten(2, (stage.rows, stage.columns)))
        return maps, tokens

    def places(self) -> list[tuple[Any, int]]:
        return [(stage, block) for stage in self.stages for block in range(stage.depth)]

    def attend(self, x: Tensor, stage: SwinStage, block: int) -> Tensor:
        """Attention inside the windows of `[B, tokens, C]`, added to them, window by window."""
        name, side, shift = stage.block(block), stage.window, stage.window // 2 * (block % 2)
        y = self.norm(x, f"{name}.norm1", self.block_eps).unflatten(1, (stage.rows, stage.columns))
        y = F.pad(y, (0, 0, 0, -stage.columns % side, 0, -stage.rows % side))
        height, length = y.shape[1:3]
        y = y.roll((-shift, -shift), (1, 2))
        query, key, value = self.linear(y, f"{name}.attn.qkv").chunk(3, -1)
        mixed, bias = torch.zeros_like(y), self.bias(name, side)
        rows, columns = (shifted_parts(n, side, shift) for n in (height, length))
        for top in range(0, height, side):
            for left in range(0, length, side):
                here = (slice(None), slice(top, top + side), slice(left, left + side))
                region = 3 * rows[top : top + side, None] + columns[None, left : left + side]
                apart = region.flatten()[:, None] != region.flatten()[None]
                q, k, v = (
                    part[here].flatten(1, 2).unflatten(2, (stage.heads, -1)).transpose(1, 2)
                    for part in (query, key, value)
                )
                scores = q @ k.transpose(2, 3) * self.scale(q.shape[-1]) + bias + HIDDEN * apart
                seen = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
                mixed[here] = seen.unflatten(1, (side, side))
        mixed = self.linear(mixed, f"{name}.attn.proj").roll((shift, shift), (1, 2))
        return x + mixed[:, : stage.rows, : stage.columns].flatten(1, 2)
