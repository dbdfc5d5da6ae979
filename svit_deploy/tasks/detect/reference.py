"""The reference: Mask R-CNN's plain PyTorch forward with torchvision's operators.

One image at a time, step by step as mmdet 2.28 evaluates it; shares no code with the graphs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms, roi_align

from svit_deploy.backbones.reference import BackboneReference
from svit_deploy.tasks.detect.detections import Detections

STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)
ANCHOR_SCALE = 8
FINEST = 56
"""Square root of the area, in pixels, below which a box is cut from the finest map."""
LARGEST_STEP = math.log(1000 / 16)
BOX_STDS = (0.1, 0.1, 0.2, 0.2)


class MaskRcnnReference:
    """A feature pyramid and Mask R-CNN's heads behind a backbone, on the CPU, float32.

    Attributes:
        drops_empty_proposals: those without area, as mmdet does since 2.12.
    """

    drops_empty_proposals = True

    def __init__(self, backbone: BackboneReference) -> None:
        self.backbone, self.numbers = backbone, backbone.config.task
        self.classes = backbone.config.num_classes

    def detect(
        self,
        features: Sequence[Tensor],
        image_size: tuple[int, int],
        scale: Sequence[float],
    ) -> Detections:
        """From the backbone's maps of one image to detections.

        Args:
            image_size: (height, width) of the picture inside the padding, which boxes are
                clipped to.
            scale: input pixels per pixel of the original, for x, y, x, y: boxes are given in the
                original's.
        """
        pyramid = self.fpn(features)
        _, proposals = self.rpn(pyramid, image_size)
        factor = torch.tensor(scale, dtype=torch.float32)
        boxes, box_scores, labels = self.box_head(pyramid, proposals, image_size, factor)
        masks = self.mask_head(pyramid, boxes * factor, labels)
        return Detections(*(value.numpy() for value in (boxes, box_scores, labels, masks)))

    def fpn(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Feature pyramid network: five maps of strides 4 to 64."""
        maps = [
            self.backbone.conv(f, f"neck.lateral_convs.{i}.conv") for i, f in enumerate(features)
        ]
        for i in (2, 1, 0):
            size = maps[i].shape[2:]
            maps[i] = maps[i] + F.interpolate(maps[i + 1], size=size, mode="nearest")
        maps = [
            self.backbone.conv(m, f"neck.fpn_convs.{i}.conv", padding=1) for i, m in enumerate(maps)
        ]
        return [*maps, F.max_pool2d(maps[-1], 1, stride=2)]

    def rpn(self, pyramid: Sequence[Tensor], image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Region proposal network: scores `[R]` and boxes `[R, 4]`, best first."""
        config = self.numbers
        scores, boxes, levels = [], [], []
        for level, (feature, stride) in enumerate(zip(pyramid, STRIDES, strict=True)):
            hidden = self.backbone.conv(feature, "rpn_head.rpn_conv", padding=1).relu()
            score = (
                self.backbone.conv(hidden, "rpn_head.rpn_cls")[0]
                .permute(1, 2, 0)
                .flatten()
                .sigmoid()
            )
            delta = (
                self.backbone.conv(hidden, "rpn_head.rpn_reg")[0].permute(1, 2, 0).reshape(-1, 4)
            )
            best = score.sort(descending=True, stable=True).indices[: config.rpn_candidates]
            found = anchors(feature.shape[2], feature.shape[3], stride)[best]
            scores.append(score[best])
            boxes.append(decode(found, delta[best], image_size))
            levels.append(torch.full_like(best, level))
        score, box, level_of = torch.cat(scores), torch.cat(boxes), torch.cat(levels)
        if self.drops_empty_proposals:
            sound = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
            score, box, level_of = score[sound], box[sound], level_of[sound]
        keep = batched_nms(box, score, level_of, config.rpn_iou)[: config.rpn_proposals]
        return score[keep], box[keep]

    def box_head(
        self,
        pyramid: Sequence[Tensor],
        proposals: Tensor,
        image_size: tuple[int, int],
        scale: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Box head: boxes in the original's pixels `[D, 4]`, scores and labels `[D]`."""
        name = "roi_head.bbox_head"
        x = align(pyramid, proposals, 7).flatten(1)
        x = self.backbone.linear(x, f"{name}.shared_fcs.0").relu()
        x = self.backbone.linear(x, f"{name}.shared_fcs.1").relu()
        scores = self.backbone.linear(x, f"{name}.fc_cls").softmax(1)
        deltas = self.backbone.linear(x, f"{name}.fc_reg").unflatten(1, (-1, 4)) * torch.tensor(
            BOX_STDS
        )
        return self.found(scores, deltas, proposals, image_size, scale)

    def found(
        self,
        scores: Tensor,
        deltas: Tensor,
        proposals: Tensor,
        image_size: tuple[int, int],
        scale: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Detections of probabilities `[R, classes + 1]` and deltas `[R, classes, 4]`."""
        config, scores = self.numbers, scores[:, :-1]
        repeated = proposals[:, None].expand(-1, self.classes, 4)
        boxes = decode(repeated.reshape(-1, 4), deltas.reshape(-1, 4), image_size) / scale
        candidate, label = (scores > config.min_score).nonzero(as_tuple=True)
        score = scores[candidate, label]
        box = boxes.view(-1, self.classes, 4)[candidate, label]
        keep = batched_nms(box, score, label, config.box_iou)[: config.max_detections]
        return box[keep], score[keep], label[keep]

    def mask_head(self, pyramid: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Mask head: probabilities `[D, 28, 28]` inside boxes in pixels of the input."""
        return self.masks(align(pyramid, boxes, 14), labels, "roi_head.mask_head")

    def masks(self, x: Tensor, labels: Tensor, name: str) -> Tensor:
        """Probabilities of each detection's own class, of what RoIAlign gave."""
        weights = self.backbone.weights
        for i in range(4):
            x = self.backbone.conv(x, f"{name}.convs.{i}.conv", padding=1).relu()
        up, bias = weights[f"{name}.upsample.weight"], weights[f"{name}.upsample.bias"]
        x = self.backbone.conv(
            F.conv_transpose2d(x, up, bias, stride=2).relu(), f"{name}.conv_logits"
        )
        return x[torch.arange(len(labels)), labels].sigmoid()


def anchors(rows: int, columns: int, stride: int) -> Tensor:
    """`[rows * columns * 3, 4]`: three shapes around the corner, not the centre, of each cell."""
    ratios = torch.tensor(RATIOS)
    half_width = stride * ANCHOR_SCALE * torch.sqrt(1 / ratios) / 2
    half_height = stride * ANCHOR_SCALE * torch.sqrt(ratios) / 2
    shapes = torch.stack([-half_width, -half_height, half_width, half_height], 1)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    corners = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4) * stride
    return (corners + shapes).reshape(-1, 4)


def decode(boxes: Tensor, deltas: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes moved and scaled by `deltas [R, 4]` (R-CNN's parametrisation), clipped to the image."""
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    centre = centre + size * deltas[:, :2]
    half = size * deltas[:, 2:].clamp(-LARGEST_STEP, LARGEST_STEP).exp() / 2
    limit = torch.tensor([image_size[1], image_size[0]], dtype=torch.float32)
    corners = torch.cat([centre - half, centre + half], 1)
    return torch.minimum(corners.clamp(min=0), limit.repeat(2))


def align(pyramid: Sequence[Tensor], boxes: Tensor, side: int) -> Tensor:
    """RoIAlign `[R, C, side, side]`, each box from the map that suits its size."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    levels = torch.floor(torch.log2(torch.sqrt(areas) / FINEST + 1e-6)).clamp(0, 3).long()
    result = torch.zeros(len(boxes), pyramid[0].shape[1], side, side)
    for level, stride in enumerate(STRIDES[:4]):
        here = levels == level
        if here.any():
            result[here] = roi_align(
                pyramid[level], [boxes[here]], side, 1 / stride, sampling_ratio=0, aligned=True
            )
    return result
