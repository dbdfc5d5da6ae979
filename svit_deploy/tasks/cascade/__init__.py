"""Cascade Mask R-CNN around a backbone: three box heads in turn, and three mask heads.

Cai and Vasconcelos, "Cascade R-CNN: High Quality Object Detection and Instance Segmentation", as
Swin's detectors have it (mmdet 2.11): heads of four convolutions and one hidden layer, logits of
the three averaged before the softmax, probabilities of the masks behind their sigmoids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from svit_deploy.model.keys import Shape
from svit_deploy.tasks.cascade.graph import CascadeGraph
from svit_deploy.tasks.cascade.keys import cascade_shapes
from svit_deploy.tasks.detect import Detect

if TYPE_CHECKING:
    from svit_deploy.backbones.reference import BackboneReference
    from svit_deploy.tasks.detect.reference import MaskRcnnReference


class Cascade(Detect):
    name = "cascade"
    graph: ClassVar[type[CascadeGraph]] = CascadeGraph
    box_head = "roi_head.bbox_head.0"

    def head_shapes(self, dims: Any) -> dict[str, Shape]:
        return cascade_shapes(dims)

    def heads_reference(self, backbone: BackboneReference) -> MaskRcnnReference:
        from svit_deploy.tasks.cascade.reference import CascadeReference

        return CascadeReference(backbone)
