"""LV-ViT's plain PyTorch forward pass."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from svit_deploy.backbones.vit.reference import VitReference


class LvVitReference(VitReference):
    def patches(self, images: Tensor) -> Tensor:
        x = images
        for i, (stride, padding) in enumerate(((2, 3), (1, 1), (1, 1)), 1):
            x = self.conv(x, f"patch_embed.conv{i}", padding, stride)
            x = self.batch_norm(x, f"patch_embed.bn{i}").relu()
        weight, bias = (self.weights[f"patch_embed.proj.{part}"] for part in ("weight", "bias"))
        return F.conv2d(x, weight, bias, stride=self.config.patch_size // 2)

    def add(self, x: Tensor, change: Tensor) -> Tensor:
        return x + change / self.config.settings.skip_lam
