"""The ONNX graph of a Swin whose patches come from convolutions."""

from __future__ import annotations

import numpy as np

from svit_deploy.backbones.swin.graph import SwinGraph
from svit_deploy.backbones.swin.settings import BN_EPS


class ConvStemGraph(SwinGraph):
    def stem(self, images: str, exact: bool) -> str:
        """Two convolutions of stride 2; each batch norm is multiplied into its convolution."""
        x, weights = images, self.layers.weights
        shape = {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}
        for part in (0, 2):
            name = f"patch_embed.proj.{part}"
            deviation = np.sqrt(weights[f"{name}.bn.running_var"] + np.float32(BN_EPS))
            scale = weights[f"{name}.bn.weight"] / deviation
            bias = weights[f"{name}.bn.bias"] - weights[f"{name}.bn.running_mean"] * scale
            weight = weights[f"{name}.c.weight"] * scale[:, None, None, None]
            x = self.graph.op("HardSwish", self.convolve(x, name, weight, bias, exact, **shape))
        return x

    def after_stem(self, rows: str) -> str:
        return rows
