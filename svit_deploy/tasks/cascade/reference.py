"""The reference: Cascade Mask R-CNN's plain PyTorch forward with torchvision's operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from svit_deploy.tasks.detect.reference import MaskRcnnReference, align, decode

STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


class CascadeReference(MaskRcnnReference):
    drops_empty_proposals = False

    def box_head(
        self,
        pyramid: Sequence[Tensor],
        proposals: Tensor,
        image_size: tuple[int, int],
        scale: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        boxes, logits = proposals, torch.zeros(len(proposals), self.classes + 1)
        for stage, stds in enumerate(STDS):
            own, deltas = self.head(align(pyramid, boxes, 7), f"roi_head.bbox_head.{stage}")
            deltas, logits = deltas * torch.tensor(stds), logits + own
            if stage < 2:
                best = own[:, :-1].argmax(1)
                boxes = decode(boxes, deltas[torch.arange(len(best)), best], image_size)
        return self.found((logits / 3).softmax(1), deltas, boxes, image_size, scale)

    def head(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Logits and deltas of one stage."""
        backbone = self.backbone
        for i in range(4):
            x = self.conv_norm(x, f"{name}.shared_convs.{i}").relu()
        x = backbone.linear(x.flatten(1), f"{name}.shared_fcs.0").relu()
        deltas = backbone.exact_linear(x, f"{name}.fc_reg").unflatten(1, (-1, 4))
        return backbone.exact_linear(x, f"{name}.fc_cls"), deltas

    def conv_norm(self, x: Tensor, name: str) -> Tensor:
        """A convolution without bias, its batch norm multiplied in."""
        exact, rounded = self.backbone.exact, self.backbone.rounded
        factor = exact[f"{name}.bn.weight"] / (exact[f"{name}.bn.running_var"] + 1e-5).sqrt()
        weight = exact[f"{name}.conv.weight"] * factor[:, None, None, None]
        bias = exact[f"{name}.bn.bias"] - exact[f"{name}.bn.running_mean"] * factor
        return F.conv2d(x, rounded(weight), rounded(bias), padding=1)

    def mask_head(self, pyramid: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        x = align(pyramid, boxes, 14)
        heads = [self.masks(x, labels, f"roi_head.mask_head.{stage}") for stage in range(3)]
        return torch.stack(heads).mean(0)
