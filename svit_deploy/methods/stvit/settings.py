"""What the paper of STViT leaves open, and what of a model each block does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from svit_deploy.methods.semantic.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class StvitChoices:
    """What defines the model beside its backbone's sizes, and where semantic tokens are made.

    Attributes:
        semantic: semantic tokens, as the weights tell: 16, 36, 64 or 100 in the paper.
        shortcut: whether they start from the pooled image tokens, as in the paper's equation 1; the
            released STViT-R's do not.
        pooled_keys: whether the pooled tokens are among those that the first block looks at; the
            paper's FLOPs exclude it on DeiT.
        pool_places: tokens of a cell of which a mean with learnt weights is taken, as the paper
            describes; 0, as the weights tell, for the maximum, as in STViT-R's code.
        keep_learnt: whether the learnt tokens stay in what the second block begins with, as in
            STViT-R's code, or are only added to its queries, as in the paper's equation 2.
    """

    semantic: int
    pool_places: int
    shortcut: bool = True
    pooled_keys: bool = False
    keep_learnt: bool = False


@dataclass(frozen=True, kw_only=True)
class StvitSettings(StvitChoices):
    """On DeiT.

    Attributes:
        generate_at: the first of the two blocks, counted from 0, that make semantic tokens.
    """

    generate_at: int = 4


@dataclass(frozen=True, kw_only=True)
class StvitOnLvVitSettings(StvitSettings):
    """On LV-ViT, for which nobody defined it: a third of the blocks come first, as on DeiT."""

    generate_at: int = 5


@dataclass(frozen=True, kw_only=True)
class StvitOnSwinSettings(StvitChoices):
    """On Swin. What has no default, the weights tell.

    Attributes:
        semantic: 16, 36 or 64, for 4, 9 or 16 of each window.
        generate_at: the same, of all stages; inside the third, behind its first block.
        pooled_keys: which the paper's FLOPs include on Swin, as does STViT-R's code.
        local_first: whether blocks that stay inside a window and those that see all semantic tokens
            take turns in this order, as in STViT-R's code, or in the other.
        last_local: whether they do so in the last stage, too; else its blocks see all.
        layer_scale: whether semantic blocks have layer scales, as in STViT-R's code.
        relative_pos: whether semantic tokens that look at each other have biases by position.
        widen_bias: whether the layer between the third stage and the last has a bias,
        widen_norm: and a norm in front of it.
    """

    generate_at: int
    pooled_keys: bool = True
    local_first: bool = True
    last_local: bool = False
    layer_scale: bool
    relative_pos: bool
    widen_bias: bool
    widen_norm: bool


@dataclass(frozen=True, kw_only=True)
class StvitOnVideoSettings(StvitOnSwinSettings):
    """On Video Swin, where all that the paper says is that each frame has semantic tokens.

    Attributes:
        time_window: frames, as patches count them, that blocks which stay inside a window see
            together; 1 for each frame by itself. Blocks that see all tokens see those of a frame.
    """

    time_window: int = 8


POOLS = ("semantic_pool.intra", "semantic_pool.inter")
"""Networks that learn how to pool: of each cell by itself, and of the cells of each window."""


@dataclass(frozen=True)
class Layout:
    """What each block does.

    Attributes:
        places: the stage of each block, and its number there.
        sampling: where semantic tokens come from.
        start: the first of the two blocks that make them.
        local: the blocks in which they look at those of their window alone.
        maps: of an image; the frames of a video, as patches count them.
        together: of them, how many local blocks see together.
    """

    places: Sequence[tuple[Any, int]]
    sampling: Sampling
    start: int
    local: frozenset[int] = frozenset()
    maps: int = 1
    together: int = 1
