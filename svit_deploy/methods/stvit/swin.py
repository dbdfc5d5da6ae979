"""STViT on Swin: semantic tokens of each window of the third stage, and the last stage on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from svit_deploy.backbones.stages import STAGES
from svit_deploy.backbones.swin import SwinDims
from svit_deploy.backbones.swin.settings import places
from svit_deploy.errors import InputError
from svit_deploy.methods.semantic.backbone import SemanticBlocks, SemanticSwin
from svit_deploy.methods.semantic.sampling import (
    SWIN_SIDE,
    SWIN_WINDOWS,
    check_windows,
    in_windows,
    size_misfit,
)
from svit_deploy.methods.stvit import Stvit
from svit_deploy.methods.stvit.graph import StvitSwinGraph
from svit_deploy.methods.stvit.settings import Layout, StvitOnSwinSettings
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.keys import Shape, Tensors
from svit_deploy.model.sizes import Misfit

if TYPE_CHECKING:
    from svit_deploy.backbones.reference import BackboneReference

STAGE = 2
"""The stage that makes semantic tokens, counted from 0."""
TABLE = "relative_position_bias_table"


@dataclass(frozen=True)
class StvitSwinDims(SwinDims):
    """With the settings that the weights tell."""

    generate_at: int = 0
    layer_scale: bool = True
    relative_pos: bool = False
    widen_bias: bool = True
    widen_norm: bool = False


OPEN = ("layer_scale", "relative_pos", "widen_bias", "widen_norm")


class StvitBlocks(SemanticBlocks):
    """Blocks are of semantic tokens from `generate_at` on, the last stage's included."""

    def heads(self, tensors: Tensors, stage: int) -> int:
        """Twice as many in each stage: the last has no biases that would tell."""
        last = stage == STAGES - 1
        return 2 * self.heads(tensors, STAGE) if last else super().heads(tensors, stage)

    def is_semantic(self, dims: Any, stage: int, block: int) -> bool:
        return sum(dims.depths[:stage]) + block >= dims.generate_at


class StvitSwin(StvitBlocks, SemanticSwin):
    graph = StvitSwinGraph

    def reference(self) -> type[BackboneReference]:
        from svit_deploy.methods.stvit.reference import StvitSwinReference

        return StvitSwinReference


class StvitOnSwin(Stvit):
    dims: ClassVar[type[StvitSwinDims]] = StvitSwinDims
    settings = StvitOnSwinSettings
    told_by_weights = (*Stvit.told_by_weights, "generate_at", *OPEN)
    required = ("semantic", "generate_at")

    def upgrade(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return settings

    def infer(self, tensors: Tensors, dims: Any) -> Any:
        names = tensors.arrays
        before, blocks = sum(dims.depths[:STAGE]), range(dims.depths[STAGE])
        third, last = f"layers.{STAGE}", f"layers.{STAGE + 1}"
        made = (b for b in blocks if f"{third}.blocks.{b}.attn.q.weight" in names)
        return self.dims(
            **vars(self.infer_semantic(tensors, dims)),
            generate_at=before + next(made, len(blocks)),
            layer_scale=any(name.endswith(".layer_scale_1") for name in names),
            relative_pos=f"{last}.blocks.0.attn.{TABLE}" in names,
            widen_bias=f"{third}.widen.bias" in names,
            widen_norm=f"{third}.widen_norm.weight" in names,
        )

    def dims_from_arch(self, dims: Any, arch: Arch) -> Any:
        told = {name: arch.settings[name] for name in OPEN if name in arch.settings}
        dims = super().dims_from_arch(dims, arch)
        return self.dims(**vars(dims), generate_at=arch.settings["generate_at"], **told)

    def shapes(self, shapes: dict[str, Shape], dims: Any) -> dict[str, Shape]:
        width, widen = dims.embed_dim << STAGE, f"layers.{STAGE}.widen"
        for part in ("norm.weight", "norm.bias", "reduction.weight"):
            del shapes[f"layers.{STAGE}.downsample.{part}"]
        shapes[f"{widen}.weight"] = (2 * width, width)
        if dims.widen_bias:
            shapes[f"{widen}.bias"] = (2 * width,)
        if dims.widen_norm:
            shapes |= {f"{widen}_norm.{part}": (width,) for part in ("weight", "bias")}
        if not dims.layer_scale:
            shapes = {name: shape for name, shape in shapes.items() if ".layer_scale_" not in name}
        if dims.relative_pos:
            # One table has all places of a map; blocks that stay inside a window use its middle.
            side = 2 * side_of(dims.semantic) - 1
            for stage in (STAGE, STAGE + 1):
                for block in range(dims.depths[stage]):
                    if sum(dims.depths[:stage]) + block >= dims.generate_at + 2:
                        name = f"layers.{stage}.blocks.{block}.attn.{TABLE}"
                        shapes[name] = (side**2, dims.stage_heads[stage])
        return shapes | self.own_shapes(dims, width)

    def misfit(self, config: ModelConfig) -> Misfit | None:
        return size_misfit(config, self.title)

    def check(self, config: ModelConfig) -> None:
        check_windows(config, self.title)
        self.check_semantic(config)

    def check_semantic(self, config: ModelConfig) -> None:
        """Raises InputError for semantic tokens that windows cannot make."""
        settings = config.settings
        before, depth = sum(settings.depths[:STAGE]), settings.depths[STAGE]
        side = side_of(settings.semantic)
        if side**2 != settings.semantic or side % SWIN_WINDOWS or not 0 < side <= SWIN_SIDE:
            raise InputError(
                f"{settings.semantic} semantic tokens are no square of each of four windows",
                "give a checkpoint with 16, 36 or 64 of them",
            )
        if not before < settings.generate_at <= before + depth - 2:
            raise InputError(
                f"generate_at is {settings.generate_at}, and the third stage has blocks {before} "
                f"to {before + depth - 1}",
                "give a checkpoint whose two blocks that make semantic tokens are in it, behind "
                "its first",
            )
        self.check_pooling(config)

    def layout(self, config: ModelConfig) -> Layout:
        return self.layout_of(config, places(config))

    def layout_of(self, config: ModelConfig, places: Sequence[tuple[Any, int]]) -> Layout:
        """What each block does, of a model with these stages."""
        settings, start = config.settings, config.settings.generate_at
        last, end = sum(settings.depths[: STAGE + 1]), sum(settings.depths)
        turns = [(start + 2, last), (last, end)][: 1 + settings.last_local]
        local = [
            block
            for first, stop in turns
            for block in range(first + (not settings.local_first), stop, 2)
        ]
        sampling = in_windows(side_of(settings.semantic) // SWIN_WINDOWS)
        return Layout(places, sampling, start, frozenset(local))


def side_of(semantic: int) -> int:
    """Semantic tokens along either side of their map."""
    return math.isqrt(max(semantic, 0))
