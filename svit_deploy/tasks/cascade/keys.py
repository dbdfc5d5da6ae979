"""Keys of Cascade Mask R-CNN's heads in mmdet checkpoints: names and shapes."""

from __future__ import annotations

from typing import Any

from svit_deploy.model.keys import Shape
from svit_deploy.tasks.detect.keys import BOX_SIDE, layers, with_biases

STAGES, CONVOLUTIONS = 3, 4
NORM_STATES = ("weight", "bias", "running_mean", "running_var")


def box_head_name(stage: int) -> str:
    return f"roi_head.bbox_head.{stage}"


def mask_head_name(stage: int) -> str:
    return f"roi_head.mask_head.{stage}"


def cascade_shapes(dims: Any) -> dict[str, Shape]:
    """Name to shape, for every tensor of the heads."""
    width, fc, classes = dims.heads.fpn_dim, dims.heads.fc_dim, dims.num_classes
    shared, masks = [], []
    for name, shape in layers(dims):
        if name.startswith("roi_head.mask_head."):
            masks.append((name.removeprefix("roi_head.mask_head."), shape))
        elif not name.startswith("roi_head."):
            shared.append((name, shape))
    shapes = with_biases(shared)
    for stage in range(STAGES):
        head = box_head_name(stage)
        for i in range(CONVOLUTIONS):
            name = f"{head}.shared_convs.{i}"
            shapes[f"{name}.conv.weight"] = (width, width, 3, 3)
            shapes |= {f"{name}.bn.{state}": (width,) for state in NORM_STATES}
        own: list[tuple[str, Shape]] = [
            (f"{head}.shared_fcs.0", (fc, width * BOX_SIDE**2)),
            (f"{head}.fc_cls", (classes + 1, fc)),
            (f"{head}.fc_reg", (4 * classes, fc)),
        ]
        own += [(f"{mask_head_name(stage)}.{name}", shape) for name, shape in masks]
        shapes |= with_biases(own)
    return shapes
