"""Swin with blocks of semantic tokens, for the methods that define which."""

from __future__ import annotations

from typing import Any

from svit_deploy.backbones.swin import Swin
from svit_deploy.backbones.swin.conv_stem import ConvStemSwin
from svit_deploy.model.keys import Shape, linear


class SemanticBlocks(Swin):
    """Swin, but that some blocks are of semantic tokens.

    Those have queries of their own, no biases by position, and layer scales.
    """

    def is_semantic(self, dims: Any, stage: int, block: int) -> bool:
        """Whether a block of a stage is one."""
        raise NotImplementedError

    def block_shapes(self, dims: Any, stage: int, block: int) -> dict[str, Shape]:
        shapes = super().block_shapes(dims, stage, block)
        if not self.is_semantic(dims, stage, block):
            return shapes
        name, width = f"layers.{stage}.blocks.{block}", dims.embed_dim << stage
        for gone in ("qkv.weight", "qkv.bias", "relative_position_bias_table"):
            del shapes[f"{name}.attn.{gone}"]
        shapes |= linear(f"{name}.attn.q", width, width)
        shapes |= linear(f"{name}.attn.kv", 2 * width, width)
        return shapes | {f"{name}.layer_scale_1": (width,), f"{name}.layer_scale_2": (width,)}


class SemanticSwin(SemanticBlocks, ConvStemSwin):
    """With patches that convolutions make."""
