"""The numbers that define a ViT-Adapter, and the names of its stages in graphs."""

from __future__ import annotations

from dataclasses import dataclass

STEP = 32
"""Height and width must be multiples of it: the coarsest feature map has this stride."""
STRIDES = (4, 8, 16, 32)
PYRAMID = "pyramid"
"""The graph's value `[B * 21N/4, C]`: the convolutional branch's tokens, finest map first."""


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """What an adapter's weights cannot tell.

    Attributes:
        deform_heads: of the deformable attention.
        interaction_blocks: ViT blocks between each injector and its extractor; equal shares by
            default.
    """

    deform_heads: int = 6
    interaction_blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class AdapterSizes:
    """`ModelConfig.backbone` of a ViT-Adapter.

    Attributes:
        conv_dim: channels of the convolutional stem.
        deform_points: of the deformable attention, per head and level.
        deform_dim: channels of its values.
        ffn_dim: hidden channels of an extractor's feed-forward network.
        extra_extractors: further extractors after the last.
    """

    conv_dim: int = 64
    deform_points: int = 4
    deform_dim: int = 0
    ffn_dim: int = 0
    extra_extractors: int = 2


def injector_name(k: int) -> str:
    """The graph's value `[B * N, C]` after an injector."""
    return f"injector_{k}.out"


def extractor_name(k: int) -> str:
    """The graph's value `[B * 21N/4, C]` after an extractor; extra ones count on."""
    return f"extractor_{k}.out"


def feature_name(stride: int) -> str:
    """The graph's output `[B, C, H / stride, W / stride]`."""
    return f"stride_{stride}"
