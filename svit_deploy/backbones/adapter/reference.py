"""The reference: a ViT-Adapter's plain PyTorch forward, as the official code evaluates it.

Shares no code with the exported graphs. Deformable attention is that of Deformable DETR (Zhu et
al., ICLR 2021), written out with `grid_sample`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from svit_deploy.backbones.reference import BackboneReference
from svit_deploy.backbones.tokens import ReferenceTokens, See

NORM_EPS = 1e-6
"""LayerNorm epsilon of injectors and extractors."""


class AdapterReference(BackboneReference):
    """A backbone's plain forward pass: four maps `[B, C, h, w]` of strides 4, 8, 16 and 32."""

    def forward(self, images: Tensor, see: See) -> Generator[Any, Any, tuple[Any, ReferenceTokens]]:
        config = self.config
        grid = (images.shape[2] // config.patch_size, images.shape[3] // config.patch_size)
        finest, c = self.pyramid_tokens(images)
        tokens = self.method.reference(self, self.patch_tokens(images, grid))
        c = see("pyramid", c)
        tokens.show("embedding", see)
        block = 0
        for k, blocks in enumerate(config.settings.interaction_blocks):
            x = self.inject(tokens.map(), c, grid, f"interactions.{k}.injector")
            tokens.put_map(see(f"injector_{k}.out", x))
            for _ in range(blocks):
                yield from tokens.block(block)
                tokens.show(f"block_{block}.out", see)
                block += 1
            c = self.extract(c, tokens.map(), grid, f"interactions.{k}.extractor")
            c = see(f"extractor_{k}.out", c)
        for e in range(config.backbone.extra_extractors):
            c = self.extract(c, tokens.map(), grid, f"interactions.{k}.extra_extractors.{e}")
            c = see(f"extractor_{k + 1 + e}.out", c)
        return self.feature_maps(finest, c, tokens.map(), grid), tokens

    def patch_tokens(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """`[B, 3, H, W]` -> `[B, S, C]`: a class token, if any, with the table's first row."""
        config, weights = self.config, self.weights
        patches = F.conv2d(
            images,
            weights["patch_embed.proj.weight"],
            weights["patch_embed.proj.bias"],
            stride=config.patch_size,
        )
        table = weights["pos_embed"][:, 1:].transpose(1, 2).unflatten(2, config.native_grid)
        positions = F.interpolate(table, size=grid, mode="bicubic", align_corners=False)
        x = (patches + positions).flatten(2).transpose(1, 2)
        if config.class_token:
            first = weights["cls_token"] + weights["pos_embed"][:, :1]
            x = torch.cat([first.expand(len(x), -1, -1), x], 1)
        return x

    def pyramid_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The convolutional branch: its map of stride 4, not yet projected to C channels, and
        tokens of strides 8, 16, 32 in turn."""
        x = images
        for i, stride in ((0, 2), (3, 1), (6, 1)):
            x = self.conv_norm_relu(x, f"spm.stem.{i}", f"spm.stem.{i + 1}", stride)
        maps = [F.max_pool2d(x, 3, stride=2, padding=1)]
        for i in (2, 3, 4):
            maps.append(self.conv_norm_relu(maps[-1], f"spm.conv{i}.0", f"spm.conv{i}.1", 2))
        coarser = (self.conv(x, f"spm.fc{i}") for i, x in enumerate(maps[1:], 2))
        levels = self.weights["level_embed"]
        tokens = [
            m.flatten(2).transpose(1, 2) + level for m, level in zip(coarser, levels, strict=True)
        ]
        return maps[0], torch.cat(tokens, 1)

    def inject(self, x: Tensor, c: Tensor, grid: tuple[int, int], name: str) -> Tensor:
        """Adds what the tokens sample from the convolutional branch."""
        height, width = grid
        levels = [(2 * height, 2 * width), grid, (height // 2, width // 2)]
        mixed = self.deformable(x, c, [grid], levels, name)
        return x + self.scaled_linear(mixed, f"{name}.attn.output_proj", f"{name}.gamma")

    def extract(self, c: Tensor, x: Tensor, grid: tuple[int, int], name: str) -> Tensor:
        """Adds what the convolutional branch samples from the tokens, then a network with a 3x3."""
        height, width = grid
        levels = [(2 * height, 2 * width), grid, (height // 2, width // 2)]
        mixed = self.deformable(c, x, levels, [grid], name)
        c = c + self.linear(mixed, f"{name}.attn.output_proj")
        hidden = self.linear(self.norm(c, f"{name}.ffn_norm", NORM_EPS), f"{name}.ffn.fc1")
        parts = []
        for part, size in zip(hidden.split([h * w for h, w in levels], 1), levels, strict=True):
            mixed = F.conv2d(
                part.transpose(1, 2).unflatten(2, size),
                self.convolved(f"{name}.ffn.dwconv.dwconv.weight"),
                self.convolved(f"{name}.ffn.dwconv.dwconv.bias"),
                padding=1,
                groups=part.shape[2],
            )
            parts.append(mixed.flatten(2).transpose(1, 2))
        return c + self.linear(F.gelu(torch.cat(parts, 1)), f"{name}.ffn.fc2")

    def deformable(
        self,
        queries: Tensor,
        source: Tensor,
        query_maps: Sequence[tuple[int, int]],
        source_maps: Sequence[tuple[int, int]],
        name: str,
    ) -> Tensor:
        """Multi-scale deformable attention `[B, Q, D]`, pre-norms included, not projected.

        Args:
            query_maps, source_maps: sizes (rows, columns) of the maps that make up `queries
                [B, Q, C]` and `source [B, S, C]`.
        """
        heads, points, levels = (
            self.config.settings.deform_heads,
            self.config.backbone.deform_points,
            len(source_maps),
        )
        query = self.norm(queries, f"{name}.query_norm", NORM_EPS)
        value = self.linear(
            self.norm(source, f"{name}.feat_norm", NORM_EPS), f"{name}.attn.value_proj"
        )
        value = value.unflatten(2, (heads, -1))
        offsets = self.exact_linear(query, f"{name}.attn.sampling_offsets")
        offsets = offsets.unflatten(2, (heads, levels, points, 2))
        share = self.exact_linear(query, f"{name}.attn.attention_weights")
        share = share.unflatten(2, (heads, -1)).softmax(-1).unflatten(3, (levels, points))
        centres = torch.cat([_centres(*size) for size in query_maps])[:, None, None]  # [Q, 1, 1, 2]
        result = torch.zeros(())
        starts = [h * w for h, w in source_maps]
        for level, (part, (rows, columns)) in enumerate(
            zip(value.split(starts, 1), source_maps, strict=True)
        ):
            size = torch.tensor([columns, rows], dtype=torch.float32)
            places = 2 * (centres + offsets[:, :, :, level] / size) - 1  # [B, Q, heads, points, 2]
            sampled = F.grid_sample(
                part.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, (rows, columns)),
                places.transpose(1, 2).flatten(0, 1),
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            )  # [B * heads, D, Q, points]
            weight = share[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
            result = result + (sampled * weight).sum(-1)
        return result.unflatten(0, (-1, heads)).flatten(1, 2).transpose(1, 2)

    def feature_maps(
        self, finest: Tensor, c: Tensor, x: Tensor, grid: tuple[int, int]
    ) -> list[Tensor]:
        """Both branches joined: four maps of strides 4, 8, 16, 32."""
        height, width = grid
        levels = [(2 * height, 2 * width), grid, (height // 2, width // 2)]
        maps = [
            part.transpose(1, 2).unflatten(2, size)
            for part, size in zip(c.split([h * w for h, w in levels], 1), levels, strict=True)
        ]
        weights = self.weights
        up = F.conv_transpose2d(maps[0], weights["up.weight"], weights["up.bias"], stride=2)
        tokens = x.transpose(1, 2).unflatten(2, grid)
        maps = [up + self.conv(finest, "spm.fc1"), *maps]
        joined = []
        for i, m in enumerate(maps, 1):
            resized = F.interpolate(tokens, size=m.shape[2:], mode="bilinear", align_corners=False)
            joined.append(self.batch_norm(m + resized, f"norm{i}"))
        return joined

    def conv_norm_relu(self, x: Tensor, conv: str, norm: str, stride: int) -> Tensor:
        x = F.conv2d(x, self.weights[f"{conv}.weight"], stride=stride, padding=1)
        return self.batch_norm(x, norm).relu()


def _centres(rows: int, columns: int) -> Tensor:
    """(x, y) of the cells' centres in [0, 1], row by row, `[rows * columns, 2]`."""
    y = (torch.arange(rows, dtype=torch.float32) + 0.5) / rows
    x = (torch.arange(columns, dtype=torch.float32) + 0.5) / columns
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
