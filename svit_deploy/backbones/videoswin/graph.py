"""Video Swin's ONNX graph: Swin's with a third axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from svit_deploy.backbones.swin.graph import SwinGraph, position_index, regions
from svit_deploy.backbones.swin.settings import FAINT
from svit_deploy.backbones.videoswin.settings import VideoStage, stages


class VideoSwinGraph(SwinGraph):
    def stages(self) -> Sequence[VideoStage]:
        return stages(self.config)

    def bias(self, stage: VideoStage, block: int) -> str:
        """Looked up in the graph: a window's 392 x 392 pairs would be most of the file.

        In a window that is cut the official code takes the first rows and columns of the whole
        window's, which are not the places' own where it is cut along height or width.
        """
        graph, inside = self.graph, stage.inside
        index = position_index(self.config.settings.window_size)[:inside, :inside]
        table = f"{stage.block(block)}.attn.relative_position_bias_table"
        with graph.scope("positions"):
            rows = graph.op("Gather", self.layers.cast_weight(table), graph.constant(index.ravel()))
            pairs = graph.reshape(rows, 1, inside, inside, stage.heads)
            return graph.op("Transpose", pairs, perm=(0, 3, 1, 2))

    def apart(self, stage: VideoStage, block: int) -> str | None:
        shifts = stage.shifts(block)
        if not any(shifts):
            return None
        graph, label = self.graph, regions(stage, shifts)
        with graph.scope("positions"):
            own, others = (graph.constant(np.expand_dims(label, axes)) for axes in ((1, 3), (1, 2)))
            same = graph.op("Equal", own, others)
            return graph.op("Where", same, graph.number(0), graph.number(FAINT))
