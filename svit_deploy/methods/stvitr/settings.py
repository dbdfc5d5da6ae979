"""The sizes of an STViT-R, for its graph and its forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from svit_deploy.methods.semantic.sampling import in_windows

UNIT = 6
"""Blocks of a unit."""
SAMPLE = 3
"""Semantic tokens along the side of a window."""
SAMPLING = in_windows(SAMPLE)
NEAR = {1: (14, 3), 2: (21, 7), 5: (27, 12)}
"""In detectors, by a block's place in its unit: the side of what a window's tokens look at, and how
much of it is in front of the window; of image tokens, but for block 5 of semantic ones."""
HIDDEN = -1000.0
IN_WINDOW, IN_MAP = 3, 4
"""Blocks of a unit in which semantic tokens look at each other: in their window, and in all."""


@dataclass(frozen=True, kw_only=True)
class StvitRSettings:
    """What a training chooses, under the names of its configuration in lower case.

    No published model has any of it.

    Attributes:
        shortcut: whether semantic tokens start from the pooled image tokens.
        relative_pos: whether semantic tokens that look at each other have biases by position.
        use_global: whether learnt tokens are added to the first unit's semantic tokens.
        use_conv_pos: whether a convolution of their window is added to the pooled image tokens.
    """

    shortcut: bool = False
    relative_pos: bool = False
    use_global: bool = False
    use_conv_pos: bool = False


def side_of(block: int) -> int:
    """Semantic tokens along the side that relative positions of a block are in; 0 for none."""
    return {IN_WINDOW: SAMPLE, IN_MAP: SAMPLING.windows * SAMPLE}.get(block % UNIT, 0)
