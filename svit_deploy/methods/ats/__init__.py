"""ATS: each image keeps the tokens that samples of its class attention fall on.

Fayyaz et al., "Adaptive Token Sampling for Efficient Vision Transformers", ECCV 2022; the numbers
are those of adaptivetokensampling/ATS @ 9271257a for one image at a time. (Its results for a
batch depend on the batch, as padding takes part in the sampling.)

The tokens of an image are sorted by significance, least first. Their cumulative significance is
stretched to [0, 1], and samples at even distances, from its first value above 0 up to 1, each
pick the token nearest to them. A token is kept if a sample lies between the two points half-way
to its neighbours: its margin is how far the nearest sample is inside, or outside if negative,
but no more than the difference in significance to a neighbour, whose place it could take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from svit_deploy.backbones.tokens import GraphTokens, ReferenceTokens
from svit_deploy.methods.ats.graph import AtsGraph
from svit_deploy.methods.ats.settings import AtsInAdapterSettings, AtsSettings
from svit_deploy.methods.method import Gates, Method
from svit_deploy.methods.removal import check_removal
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig, TokenMode, check_ratios

if TYPE_CHECKING:
    from torch import Tensor


class Ats(Method):
    """On DeiT's weights, without parameters of its own."""

    title = "ATS"
    modes = (TokenMode.DYNAMIC, TokenMode.MASKED, TokenMode.DENSE)
    blocks_setting = "ats_blocks"
    settings: ClassVar[type | None] = AtsSettings
    rule = "keep iff margin > threshold, margin = how far a sample is inside the token's reach"
    removes = True
    ranks_inside = True
    margin_unit = 0.05  # of cumulative significance, which ends at 1

    def settings_from_args(self, args: Mapping[str, Any]) -> dict[str, Any] | None:
        blocks = args.get("VIT.ATS_BLOCKS")
        return {"ats_blocks": blocks} if isinstance(blocks, list) else None

    def gates(self, arch: Arch, dims: Any, settings: Any, class_token: bool) -> Gates:
        return Gates(settings.ats_blocks, (False,) * len(settings.ats_blocks))

    def places(self, config: ModelConfig) -> tuple[int, ...]:
        blocks: tuple[int, ...] = config.settings.ats_blocks
        return blocks

    def check(self, config: ModelConfig) -> None:
        self.refuse_distillation_token(config)

    def graph(self, writer: Any, rows: str) -> GraphTokens:
        return AtsGraph(writer, rows)

    def reference(self, backbone: Any, x: Tensor) -> ReferenceTokens:
        from svit_deploy.methods.ats.reference import AtsReference

        return AtsReference(backbone, x)


class AtsInAdapter(Ats):
    settings = AtsInAdapterSettings

    def check(self, config: ModelConfig) -> None:
        super().check(config)
        check_removal(config.settings)
        check_ratios((config.settings.sample_share,), "sample_share")
