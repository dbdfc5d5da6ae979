"""What is chosen for an ATS, and what its graph and its forward pass agree on."""

from __future__ import annotations

from dataclasses import dataclass

from svit_deploy.methods.removal import RemovalSettings

FAR = 2.0
"""Beyond any sample, all of which lie in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class AtsSettings:
    """What is chosen for a DeiT.

    Attributes:
        ats_blocks: the blocks that sample; by default as published.
    """

    ats_blocks: tuple[int, ...] = (3, 4, 5, 6, 7, 8, 9, 10, 11)


@dataclass(frozen=True, kw_only=True)
class AtsInAdapterSettings(RemovalSettings, AtsSettings):
    """In a ViT-Adapter, for which nothing is published.

    Attributes:
        sample_share: samples of each sampling block, as a share of the image's patches; no image
            keeps more.
    """

    sample_share: float = 1.0
