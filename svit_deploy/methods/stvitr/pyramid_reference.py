"""The plain PyTorch forward of an STViT-R in a detector, window by window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from svit_deploy.backbones.swin.conv_stem_reference import ConvStemReference
from svit_deploy.backbones.swin.pyramid_reference import SwinPyramidReference
from svit_deploy.backbones.swin.settings import SwinStage
from svit_deploy.methods.semantic.reference import feed
from svit_deploy.methods.stvitr.reference import StvitRReference


class ConvStemPyramidReference(SwinPyramidReference, ConvStemReference):
    """Maps of a Swin whose patches come from convolutions."""


class StvitRPyramidReference(StvitRReference):
    def step(self, block: int) -> None:
        stage, number = self.backbone.places()[block]
        role = number % 6 if stage.index == 2 else 0
        if role == 0:
            self.rows = self.image = self.backbone.plain_block(self.image, block)
        elif role == 5:
            self.rows = self.image = self.recover(stage, number)
        else:
            s = self.pool(stage) if role == 1 else self.semantic
            if role == 1:
                mixed = self.near(s, stage, number, 14, 3)
            elif role == 2:
                mixed = self.near(s, stage, number, 21, 7)
            else:
                mixed = self.among(s, stage, number, local=role == 3)
            self.rows = self.semantic = feed(self.backbone, s + mixed, stage.block(number))

    def padded(self, stage: SwinStage) -> tuple[Tensor, int, int]:
        """The image's tokens `[B, H, W, C]` up to whole windows, and what was added."""
        side = stage.window
        bottom, right = -stage.rows % side, -stage.columns % side
        x = self.image.unflatten(1, (stage.rows, stage.columns))
        return F.pad(x, (0, 0, 0, right, 0, bottom)), bottom, right

    def pool(self, stage: SwinStage) -> Tensor:
        """Semantic tokens `[B, S, C]` to start from, row by row."""
        x, _, _ = self.padded(stage)
        side = stage.window
        rows = []
        for top in range(0, x.shape[1], side):
            cells = [
                F.adaptive_max_pool2d(
                    x[:, top : top + side, left : left + side].permute(0, 3, 1, 2), 3
                )
                for left in range(0, x.shape[2], side)
            ]
            rows.append(torch.cat(cells, 3))
        return torch.cat(rows, 2).flatten(2).transpose(1, 2)

    def table(self, rows: int, columns: int, bottom: int, right: int, halo: Any) -> Tensor:
        """Added to the scores of each place: the slices are the official ones, `-0:` included."""
        table = torch.zeros(rows, columns)
        table[-bottom:, -right:] = -1000
        table = F.pad(table, halo, value=-1000)
        return table - table.max()  # the same for all hides nothing, and would cost digits

    def near(self, s: Tensor, stage: SwinStage, block: int, side: int, before: int) -> Tensor:
        """What semantic tokens see of the image around their window."""
        x, bottom, right = self.padded(stage)
        height, length = x.shape[1:3]
        after = side - stage.window - before
        halo = (before, after, before, after)
        table = self.table(height, length, bottom, right, halo)
        x = F.pad(x, (0, 0, *halo))
        s = s.unflatten(1, (3 * height // 7, 3 * length // 7))
        mixed = torch.zeros_like(s)
        for i in range(height // 7):
            for j in range(length // 7):
                own = (slice(None), slice(3 * i, 3 * i + 3), slice(3 * j, 3 * j + 3))
                place = (slice(None), slice(7 * i, 7 * i + side), slice(7 * j, 7 * j + side))
                found = self.attend(s[own], x[place], table[place[1:]], stage, block)
                mixed[own] = found
        return mixed.flatten(1, 2)

    def recover(self, stage: SwinStage, block: int) -> Tensor:
        """Image tokens look at the semantic tokens around their window."""
        x, bottom, right = self.padded(stage)
        height, length = x.shape[1] // 7, x.shape[2] // 7
        table = self.table(3 * height, 3 * length, bottom, right, (12,) * 4)
        s = F.pad(self.semantic.unflatten(1, (3 * height, 3 * length)), (0, 0, *(12,) * 4))
        mixed = torch.zeros_like(x)
        for i in range(height):
            for j in range(length):
                own = (slice(None), slice(7 * i, 7 * i + 7), slice(7 * j, 7 * j + 7))
                place = (slice(None), slice(3 * i, 3 * i + 27), slice(3 * j, 3 * j + 27))
                mixed[own] = self.attend(x[own], s[place], table[place[1:]], stage, block)
        mixed = mixed[:, : stage.rows, : stage.columns].flatten(1, 2)
        return feed(self.backbone, self.image + mixed, stage.block(block))

    def among(self, s: Tensor, stage: SwinStage, block: int, local: bool) -> Tensor:
        """What semantic tokens see of each other: of their window, or of all."""
        x, _, _ = self.padded(stage)
        rows, columns = (3 * n // 7 for n in x.shape[1:3])
        s = s.unflatten(1, (rows, columns))
        side = (3, 3) if local else (rows, columns)
        mixed = torch.zeros_like(s)
        for top in range(0, rows, side[0]):
            for left in range(0, columns, side[1]):
                own = (slice(None), slice(top, top + side[0]), slice(left, left + side[1]))
                mixed[own] = self.attend(s[own], s[own], torch.zeros(side), stage, block)
        return mixed.flatten(1, 2)

    def attend(self, x: Tensor, at: Tensor, bias: Tensor, stage: SwinStage, block: int) -> Tensor:
        """Attention of `[B, h, w, C]` to `[B, H, W, C]`, projected and scaled."""
        reference, name = self.backbone, stage.block(block)
        own, others = (
            reference.norm(v.flatten(1, 2), f"{name}.norm1", reference.block_eps) for v in (x, at)
        )
        query = reference.linear(own, f"{name}.attn.q")
        key, value = reference.linear(others, f"{name}.attn.kv").chunk(2, -1)
        query, key, value = (
            v.unflatten(2, (stage.heads, -1)).transpose(1, 2) for v in (query, key, value)
        )
        scores = query @ key.transpose(2, 3) * reference.scale(query.shape[-1]) + bias.flatten()
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        mixed = reference.scaled_linear(mixed, f"{name}.attn.proj", f"{name}.layer_scale_1")
        return mixed.unflatten(1, x.shape[1:3])
