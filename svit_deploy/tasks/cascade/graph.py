"""Cascade Mask R-CNN's heads as an ONNX graph, with mmdet's semantics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from svit_deploy.graph.maps import conv
from svit_deploy.tasks.cascade.keys import CONVOLUTIONS, STAGES, box_head_name, mask_head_name
from svit_deploy.tasks.detect.boxes import decode, roi_align
from svit_deploy.tasks.detect.graph import MaskRcnnGraph
from svit_deploy.tasks.detect.keys import BOX_SIDE

STAGE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
"""The box coder's deviations of each stage."""
BATCH_NORM_EPS = 1e-5


class CascadeGraph(MaskRcnnGraph):
    def sound(self, boxes: str, scores: str) -> str:
        """Proposals without area stay, as in mmdet 2.11."""
        return scores

    def box_head(
        self, pyramid: Sequence[str], boxes: str, image: str, limit: str, scale: str
    ) -> tuple[str, str, str, str]:
        """Each stage moves the boxes that the next one looks at; the last one's are found."""
        graph, classes, summed = self.graph, self.config.num_classes, ""
        for stage, stds in enumerate(STAGE_STDS):
            with graph.scope(f"stage_{stage}"):
                x, order = roi_align(graph, pyramid, boxes, image, BOX_SIDE)
                boxes, image = graph.op("Gather", boxes, order), graph.op("Gather", image, order)
                logits, deltas = self.head(x, box_head_name(stage), stds)
                if stage:
                    summed = graph.op("Add", graph.op("Gather", summed, order), logits)
                else:
                    summed = logits
                if stage < STAGES - 1:
                    own = graph.slice(logits, 0, classes)
                    label = graph.op("ArgMax", own, axis=1, keepdims=1)
                    delta = graph.op("GatherND", deltas, label, batch_dims=1)
                    boxes = decode(graph, boxes, delta, graph.op("Gather", limit, image))
        logits = graph.op("Div", summed, graph.constant(STAGES, np.float32))
        return self.found(logits, deltas, boxes, image, limit, scale)

    def head(self, x: str, name: str, stds: Sequence[float]) -> tuple[str, str]:
        """Logits `[R, classes + 1]` and deltas `[R, classes, 4]` of what RoIAlign gave."""
        graph, layers, weights = self.graph, self.layers, self.layers.weights
        x = graph.to_precision(x)
        for i in range(CONVOLUTIONS):
            layer = f"{name}.shared_convs.{i}"
            mean, var, gain, bias = (
                weights[f"{layer}.bn.{part}"]
                for part in ("running_mean", "running_var", "weight", "bias")
            )
            factor = gain / np.sqrt(var + np.float32(BATCH_NORM_EPS))
            weight = weights[f"{layer}.conv.weight"] * factor[:, None, None, None]
            normed = conv(self.layers, x, f"{layer}.normed", weight, bias - mean * factor)
            x = graph.op("Relu", normed)
        x = graph.reshape(x, -1, self.numbers.fpn_dim * BOX_SIDE**2)
        x = graph.to_float32(graph.op("Relu", layers.linear(x, f"{name}.shared_fcs.0")))
        logits = layers.exact_linear(x, f"{name}.fc_cls")
        deltas = self.box_deltas(x, f"{name}.fc_reg", stds)
        return logits, graph.reshape(deltas, -1, self.config.num_classes, 4)

    def masks(self, x: str, labels: str) -> str:
        """The mean of the three heads' probabilities."""
        found = [self.mask(x, labels, mask_head_name(stage)) for stage in range(STAGES)]
        total = self.graph.op("Sum", *found)
        return self.graph.op("Div", total, self.graph.constant(STAGES, np.float32))
