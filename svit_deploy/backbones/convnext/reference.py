"""ConvNeXt's plain PyTorch forward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from svit_deploy.backbones.convnext.settings import KERNEL, ConvNextStage, places
from svit_deploy.backbones.reference import StagedReference


class ConvNextReference(StagedReference):
    def __init__(self, *arguments: Any) -> None:
        """A convolution of single places is a linear layer."""
        super().__init__(*arguments)
        flat = {n: v.flatten(1) if v.shape[2:] == (1, 1) else v for n, v in self.exact.items()}
        self.exact = self.weights = flat

    def places(self) -> list[tuple[Any, int]]:
        return places(self.config)

    def convolve(self, x: Tensor, name: str, **how: int) -> Tensor:
        """Tokens `[B, N, O]` of a convolution of maps `[B, C, H, W]`."""
        weight, bias = (self.convolved(f"{name}.{part}") for part in ("weight", "bias"))
        return F.conv2d(x, weight, bias, **how).flatten(2).transpose(1, 2)

    def embed(self, images: Tensor) -> Tensor:
        x = self.convolve(images, "downsample_layers.0.0", stride=self.config.patch_size)
        return self.norm(x, "downsample_layers.0.1", self.block_eps)

    def shrink(self, x: Tensor, stage: ConvNextStage) -> Tensor:
        name = f"downsample_layers.{stage.index}"
        x = self.norm(x, f"{name}.0", self.block_eps)
        x = x.transpose(1, 2).unflatten(2, (2 * stage.rows, 2 * stage.columns))
        return self.convolve(x, f"{name}.1", stride=2)

    def mix(self, x: Tensor, block: int) -> tuple[Tensor, Tensor]:
        stage, name = self.places()[block][0], f"{self.name_of(block)}.dwconv"
        image = x.transpose(1, 2).unflatten(2, (stage.rows, stage.columns))
        return x, self.convolve(image, name, padding=KERNEL // 2, groups=stage.width)

    def feed(self, x: Tensor, block: int) -> Tensor:
        name = self.name_of(block)
        y = self.norm(x, f"{name}.norm", self.block_eps)
        hidden = F.gelu(self.linear(y, f"{name}.pwconv1"))
        return self.scaled_linear(hidden, f"{name}.pwconv2", f"{name}.gamma")
