"""The reference of a ViT-Adapter with windows: its plain PyTorch forward."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from svit_deploy.backbones.adapter.reference import AdapterReference


class WindowedReference(AdapterReference):
    grid = (0, 0)

    def patch_tokens(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        self.grid = grid
        return super().patch_tokens(images, grid)

    def plain_block(self, x: Tensor, block: int) -> Tensor:
        name, side = f"blocks.{block}", self.config.settings.windows[block]
        parts = self.qkv(self.norm(x, f"{name}.norm1", self.block_eps), block)
        mixed = self.in_windows(*parts, side) if side else self.attend(*parts)
        mixed = mixed.transpose(1, 2).flatten(2)
        x = x + self.scaled_linear(mixed, f"{name}.attn.proj", f"{name}.gamma1")
        hidden = self.linear(self.norm(x, f"{name}.norm2", self.block_eps), f"{name}.mlp.fc1")
        return x + self.scaled_linear(F.gelu(hidden), f"{name}.mlp.fc2", f"{name}.gamma2")

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scale = self.scale(query.shape[-1])
        return F.scaled_dot_product_attention(query, key, value, scale=scale)

    def in_windows(self, query: Tensor, key: Tensor, value: Tensor, side: int) -> Tensor:
        """Attention of `[B, H, N, D]` window by window, with zeros behind the map."""
        rows, columns = self.grid
        padding = (0, 0, 0, -columns % side, 0, -rows % side)
        maps = [F.pad(part.unflatten(2, self.grid), padding) for part in (query, key, value)]
        mixed = torch.zeros_like(maps[0])
        for top in range(0, mixed.shape[2], side):
            for left in range(0, mixed.shape[3], side):
                here = (..., slice(top, top + side), slice(left, left + side), slice(None))
                window = self.attend(*(part[here].flatten(2, 3) for part in maps))
                mixed[here] = window.unflatten(2, (side, side))
        return mixed[:, :, :rows, :columns].flatten(2, 3)
