"""The plain PyTorch forward pass of multi-scale features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate

from svit_deploy.methods.mergence import MergenceReference
from svit_deploy.methods.multiscale.settings import CONVOLUTIONS, half
from svit_deploy.model.positions import interpolate_positions


class MultiScaleReference(MergenceReference):
    low: Tensor | None = None

    def step(self, block: int) -> None:
        config, backbone, settings = self.config, self.backbone, self.config.settings
        first = settings.prune_blocks[0]

        def to_image(x: Tensor, grid: tuple[int, int]) -> Tensor:
            return x.transpose(1, 2).unflatten(2, grid)

        def shrink(x: Tensor) -> Tensor:
            means = avg_pool2d(to_image(x[:, 1:], config.grid), 2).flatten(2).transpose(1, 2)
            return torch.cat([x[:, :1], means], dim=1)

        def positions(name: str, native: tuple[int, int], grid: tuple[int, int]) -> Tensor:
            table = backbone.exact[name].numpy()
            return torch.from_numpy(interpolate_positions(table, 1, native, grid))

        if not block:
            own = positions("low_pos_embed", half(config.native_grid), half(config.grid))
            high = shrink(positions("pos_embed", config.native_grid, config.grid))
            token = backbone.rounded(backbone.exact["low_cls_token"] + own[:, :1])
            means = shrink(self.rows)[:, 1:] + backbone.rounded((own - high)[:, 1:])
            self.low = torch.cat([token.expand(len(means), -1, -1), means], dim=1)
        if block == first:
            self.fuse(lambda x, grid: interpolate(to_image(x, grid), scale_factor=2))
        if block >= first:
            super().step(block)
            return
        x = self.rows
        self.low = backbone.plain_block(self.low, block)
        if block >= settings.cheap_blocks:
            self.rows = backbone.plain_block(x, block)
            return
        name = f"blocks.{block}"
        if settings.mean_of_normed:
            small = shrink(backbone.norm(x, f"{name}.norm1", backbone.block_eps))
        else:
            small = backbone.norm(shrink(x), f"{name}.norm1", backbone.block_eps)
        query, key, value = backbone.qkv(small, block)
        weights = (query @ key.transpose(2, 3) * backbone.scale(query.shape[-1])).softmax(-1)
        mixed = backbone.linear((weights @ value).transpose(1, 2).flatten(2), f"{name}.attn.proj")
        wide = interpolate(to_image(mixed[:, 1:], half(config.grid)), scale_factor=2)
        wide = torch.cat([mixed[:, :1], wide.flatten(2).transpose(1, 2)], dim=1)
        self.rows = backbone.feed_forward(backbone.add(x, wide), block)

    def fuse(self, repeated: Any) -> None:
        config, low = self.config, self.low
        assert low is not None
        x = repeated(low[:, 1:], half(config.grid))
        gain = self.convolve(self.convolve(x, "lka.conv0"), "lka.conv_spatial")
        high = self.rows[:, 1:].transpose(1, 2).unflatten(2, config.grid)
        x = high + x * self.convolve(gain, "lka.conv1")
        x = x + self.convolve(x, "peg.proj")
        high_share, low_share = config.settings.class_shares
        token = high_share * self.rows[:, :1] + low_share * low[:, :1]
        self.rows = torch.cat([token, x.flatten(2).transpose(1, 2)], dim=1)

    def convolve(self, x: Tensor, name: str) -> Tensor:
        weight, bias = (self.backbone.convolved(f"{name}.{part}") for part in ("weight", "bias"))
        side, dilation = CONVOLUTIONS.get(name, (1, 1))
        groups = x.shape[1] if name in CONVOLUTIONS else 1
        padding = side // 2 * dilation
        return conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=groups)
