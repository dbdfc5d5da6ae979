"""A Vision Transformer as an ONNX graph."""

from __future__ import annotations

import numpy as np

from svit_deploy.backbones.tokens import GraphTokens
from svit_deploy.backbones.writer import GraphWriter
from svit_deploy.graph.builder import BFLOAT16
from svit_deploy.model.positions import interpolate_positions
from svit_deploy.names import EMBEDDING


class VitGraph(GraphWriter):
    """Patches, prefix tokens and positions, then a row of equal blocks."""

    def run(self, images: str) -> GraphTokens:
        tokens = self.method.graph(self, self.embed(images))
        for block in range(self.config.depth):
            tokens.step(block)
        return tokens

    def embed(self, images: str) -> str:
        """Patches, prefix tokens and positions: `[B, 3, H, W]` -> rows `[B * S, C]`."""
        config, graph, layers = self.config, self.graph, self.layers
        width = config.embed_dim
        positions = interpolate_positions(
            layers.weights["pos_embed"], config.prefix_tokens, config.native_grid, config.grid
        )
        prefix_positions, patch_positions = np.split(positions, [config.prefix_tokens], axis=1)
        prefix_names = ("cls_token", "dist_token")[: config.prefix_tokens]
        prefix = [layers.weights[name] for name in prefix_names]
        with graph.scope("embedding"):
            patches = self.patches(graph.to_precision(images))
            patches = graph.op(
                "Add", patches, layers.cast_weight("patch_positions", patch_positions)
            )
            tokens = patches
            if prefix:
                table = np.concatenate(prefix, axis=1) + prefix_positions
                first = layers.cast_weight("prefix_tokens", table)
                batch = graph.op("Concat", graph.shape(images, 0), graph.constant([1, 1]), axis=0)
                tokens = graph.op("Concat", graph.op("Expand", first, batch), patches, axis=1)
            rows = graph.reshape(tokens, -1, width)
        return graph.rename(rows, EMBEDDING)

    def patches(self, images: str) -> str:
        """The linear embedding of the patches: `[B, 3, H, W]` -> `[B, N, C]`."""
        config, graph, layers = self.config, self.graph, self.layers
        patch, width, (rows, columns) = config.patch_size, config.embed_dim, config.grid
        weight, bias = layers.weights["patch_embed.proj.weight"], "patch_embed.proj.bias"
        if graph.dtype == BFLOAT16:  # which the ONNX convolution does not take before opset 22
            split = graph.reshape(images, -1, 3, rows, patch, columns, patch)
            split = graph.op("Transpose", split, perm=(0, 2, 4, 1, 3, 5))
            pixels = graph.reshape(split, -1, 3 * patch * patch)
            flat = layers.cast_weight("patch_embed.proj.weight", weight.reshape(width, -1))
            embedded = graph.op("Gemm", pixels, flat, layers.cast_weight(bias), transB=1)
            return graph.reshape(embedded, -1, config.num_patches, width)
        embedded = graph.op(
            "Conv",
            images,
            layers.cast_weight("patch_embed.proj.weight"),
            layers.cast_weight(bias),
            kernel_shape=(patch, patch),
            strides=(patch, patch),
        )
        embedded = graph.reshape(embedded, 0, width, config.num_patches)
        return graph.op("Transpose", embedded, perm=(0, 2, 1))
