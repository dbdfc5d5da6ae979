"""Keys of Mask R-CNN's heads in mmdet checkpoints: names, shapes, and what they tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from svit_deploy.methods.families import FAMILIES
from svit_deploy.model.keys import Shape

PREFIXES = ("neck.", "rpn_head.", "roi_head.")
ANCHORS = 3
BOX_SIDE, MASK_SIDE = 7, 14
"""Bins per side of what RoIAlign gives the box head and the mask head."""


@dataclass(frozen=True)
class HeadDims:
    """What the shapes of the weights tell: channels of the pyramid and of the box head."""

    fpn_dim: int
    fc_dim: int


def head_shapes(dims: Any) -> dict[str, Shape]:
    """Name to shape, for every tensor of the heads."""
    return with_biases(layers(dims))


def with_biases(named: Iterable[tuple[str, Shape]]) -> dict[str, Shape]:
    """Layers by name with the shapes of their weights -> those of weights and biases."""
    shapes: dict[str, Shape] = {}
    for name, weight in named:
        shapes[f"{name}.weight"] = weight
        shapes[f"{name}.bias"] = weight[1:2] if name.endswith("upsample") else weight[:1]
    return shapes


def layers(dims: Any) -> Iterator[tuple[str, Shape]]:
    """Mask R-CNN's pyramid, proposal head, box head and mask head."""
    width, fc, classes = dims.heads.fpn_dim, dims.heads.fc_dim, dims.num_classes
    for i, channels in enumerate(FAMILIES[dims.family].backbone.feature_widths(dims)):
        yield f"neck.lateral_convs.{i}.conv", (width, channels, 1, 1)
        yield f"neck.fpn_convs.{i}.conv", (width, width, 3, 3)
        yield f"roi_head.mask_head.convs.{i}.conv", (width, width, 3, 3)
    yield "rpn_head.rpn_conv", (width, width, 3, 3)
    yield "rpn_head.rpn_cls", (ANCHORS, width, 1, 1)
    yield "rpn_head.rpn_reg", (4 * ANCHORS, width, 1, 1)
    yield "roi_head.bbox_head.shared_fcs.0", (fc, width * BOX_SIDE**2)
    yield "roi_head.bbox_head.shared_fcs.1", (fc, fc)
    yield "roi_head.bbox_head.fc_cls", (classes + 1, fc)
    yield "roi_head.bbox_head.fc_reg", (4 * classes, fc)
    yield "roi_head.mask_head.upsample", (width, width, 2, 2)
    yield "roi_head.mask_head.conv_logits", (classes, width, 1, 1)
