"""The plain PyTorch forward of a Swin whose patches come from convolutions."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from svit_deploy.backbones.swin.reference import SwinReference
from svit_deploy.backbones.swin.settings import BN_EPS


class ConvStemReference(SwinReference):
    def embed(self, images: Tensor) -> Tensor:
        """Image tokens `[B, N, C]`."""
        x, weights = images, self.weights
        for part in (0, 2):
            name = f"patch_embed.proj.{part}"
            x = F.conv2d(x, weights[f"{name}.c.weight"], stride=2, padding=1)
            mean, variance = weights[f"{name}.bn.running_mean"], weights[f"{name}.bn.running_var"]
            scale, shift = weights[f"{name}.bn.weight"], weights[f"{name}.bn.bias"]
            x = F.hardswish(F.batch_norm(x, mean, variance, scale, shift, eps=BN_EPS))
        return x.flatten(2).transpose(1, 2)
