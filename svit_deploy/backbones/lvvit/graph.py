"""LV-ViT's ONNX graph: a ViT's, after batch norms and divisors are multiplied into the weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from svit_deploy.backbones.vit.graph import VitGraph
from svit_deploy.graph.maps import conv, map_op, to_rows

BATCH_NORM_EPS = 1e-5


class LvVitGraph(VitGraph):
    def fold(self, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        folded = dict(weights)
        for i in (1, 2, 3):
            name = f"patch_embed.bn{i}"
            weight, bias, mean, var = (
                folded.pop(f"{name}.{part}").astype(np.float64)
                for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale = weight / np.sqrt(var + BATCH_NORM_EPS)
            kernel = folded[f"patch_embed.conv{i}.weight"] * scale[:, None, None, None]
            folded[f"patch_embed.conv{i}.weight"] = kernel.astype(np.float32)
            folded[f"patch_embed.conv{i}.bias"] = (bias - mean * scale).astype(np.float32)
        share = np.float32(1 / self.config.settings.skip_lam)
        for block in range(self.config.depth):
            for name in ("attn.proj", "mlp.fc2"):
                for part in ("weight", "bias"):
                    folded[f"blocks.{block}.{name}.{part}"] = (
                        folded[f"blocks.{block}.{name}.{part}"] * share
                    )
        return folded

    def patches(self, images: str) -> str:
        config, graph, weights, x = self.config, self.graph, self.layers.weights, images
        for i, stride in ((1, 2), (2, 1), (3, 1)):
            name = f"patch_embed.conv{i}"
            kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            x = graph.op("Relu", conv(self.layers, x, name, kernel, bias, stride))
        half = config.patch_size // 2
        name = "patch_embed.proj"
        given = {f"{name}.{part}": weights[f"{name}.{part}"] for part in ("weight", "bias")}
        x = map_op(self.layers, "Conv", x, given, kernel_shape=(half, half), strides=(half, half))
        rows = to_rows(graph, x, config.embed_dim)
        return graph.reshape(rows, -1, config.num_patches, config.embed_dim)
