"""Video Swin: Swin's attention in windows of time, height and width.

Liu et al., "Video Swin Transformer", CVPR 2022; keys and numbers are those of
SwinTransformer/Video-Swin-Transformer, without `backbone.`. Maps that windows do not tile get zeros
behind the norm, which are not masked; windows of a map that is smaller are cut to it, axis by axis.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from svit_deploy.backbones.backbone import Backbone, Named
from svit_deploy.backbones.heads import Head, mean_head
from svit_deploy.backbones.stages import STAGES
from svit_deploy.backbones.swin import Swin, SwinDims
from svit_deploy.backbones.videoswin.graph import VideoSwinGraph
from svit_deploy.backbones.videoswin.settings import VideoSwinSettings
from svit_deploy.errors import InputError, UsageError
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.keys import Shape, Tensors, linear, norm
from svit_deploy.model.sizes import Misfit

if TYPE_CHECKING:
    from svit_deploy.backbones.reference import BackboneReference

HEAD = "cls_head.fc_cls"
AXES = 3
PATCH_FRAMES = 2
"""Of every published model."""


@dataclass(frozen=True)
class VideoSwinDims(SwinDims):
    """`window` is that of height and width."""

    window_size: tuple[int, ...] = ()
    patch_frames: int = 0


class VideoSwin(Swin):
    title = "Video Swin"
    tasks = ("video",)
    graph = VideoSwinGraph
    head: ClassVar[Head | None] = mean_head(HEAD)
    settings = VideoSwinSettings
    told_by_weights = ("depths", "stage_heads", "window_size", "patch_frames")
    required = ("depths", "window_size")
    frames = 32

    def reference(self) -> type[BackboneReference]:
        from svit_deploy.backbones.videoswin.reference import VideoSwinReference

        return VideoSwinReference

    def matches(self, keys: Collection[str]) -> bool:
        return super().matches(keys) and f"{HEAD}.weight" in keys

    def infer(self, family: str, tensors: Tensors, named: Named) -> VideoSwinDims:
        window = window_of(tensors)
        found = super().infer(family, tensors, named)
        own = {**vars(found), "window": window[1], "num_patches": (8 * window[1]) ** 2}
        patch = tensors.shape("patch_embed.proj.weight", 5)
        return VideoSwinDims(**own, window_size=window, patch_frames=patch[2])

    def patch_size(self, tensors: Tensors) -> int:
        return tensors.shape("patch_embed.proj.weight", 5)[3]

    def classes(self, tensors: Tensors) -> int:
        return tensors.shape(f"{HEAD}.weight", 2)[0]

    def dims_from_arch(self, family: str, arch: Arch) -> VideoSwinDims:
        window = tuple(arch.settings["window_size"])
        if len(window) != AXES or min(window) < 1:
            raise UsageError(
                f"window_size {list(window)} is not of {AXES} axes",
                "give places along time, height and width, for example 8,7,7",
            )
        found = super().dims_from_arch(family, arch)
        own = {**vars(found), "num_classes": arch.num_classes or 400, "window": window[1]}
        frames = arch.settings.get("patch_frames", PATCH_FRAMES)
        own["num_patches"] = (8 * window[1]) ** 2
        return VideoSwinDims(**own, window_size=window, patch_frames=frames)

    def head_shapes(self, dims: Any) -> dict[str, Shape]:
        width = dims.embed_dim << (STAGES - 1)
        return norm("norm", width) | linear(HEAD, dims.num_classes, width)

    def stem_shapes(self, dims: Any) -> dict[str, Shape]:
        patch = (dims.patch_frames, dims.patch_size, dims.patch_size)
        return super().stem_shapes(dims) | {
            "patch_embed.proj.weight": (dims.embed_dim, 3, *patch),
        }

    def block_shapes(self, dims: Any, stage: int, block: int) -> dict[str, Shape]:
        table = prod(2 * side - 1 for side in dims.window_size), dims.stage_heads[stage]
        name = f"layers.{stage}.blocks.{block}.attn.relative_position_bias_table"
        return super().block_shapes(dims, stage, block) | {name: table}

    def patches(self, config: ModelConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        counts, sides = super().patches(config)
        frames = config.settings.patch_frames
        return (config.frames // frames, *counts), (frames, *sides)

    def misfit(self, config: ModelConfig) -> Misfit | None:
        return Backbone.misfit(self, config)

    def check(self, config: ModelConfig) -> None:
        settings = config.settings
        window, patch = settings.window_size, settings.patch_frames
        if len(window) != AXES or min(window) < 1:
            raise InputError(
                f"window_size is {list(window)}", "give a complete Video Swin checkpoint"
            )
        self.check_stages(config)
        if patch < 1 or config.frames % patch:
            raise InputError(
                f"{config.frames} frames are not a multiple of the {patch} of a patch",
                f"give --set frames={-(-config.frames // max(patch, 1)) * max(patch, 1)}",
            )


def window_of(tensors: Tensors) -> tuple[int, int, int]:
    """Places of a window along time, height and width; height and width have as many.

    The rows of a table of relative positions tell it together with the places of a window, which
    the index beside the table counts. Without an index, windows of one place per frame are none.

    Raises:
        InputError: no such window, or several.
    """
    name = "layers.0.blocks.0.attn.relative_position_"
    rows = tensors.shape(f"{name}bias_table", 2)[0]
    found = [
        ((rows // (2 * side - 1) ** 2 + 1) // 2, side, side)
        for side in range(1, (int(rows**0.5) + 1) // 2 + 1)
        if rows % (2 * side - 1) ** 2 == 0 and rows % 2
    ]
    if f"{name}index" in tensors.arrays:
        inside = tensors.shape(f"{name}index", 2)[0]
        found = [window for window in found if prod(window) == inside]
    elif len(found) > 1:
        found = [window for window in found if window[1] > 1]
    if len(found) != 1:
        told = " or ".join("x".join(map(str, window)) for window in found) or "no window"
        raise InputError(
            f"{name}bias_table has {rows} rows, which is a table of {told}",
            "give the checkpoint with its relative_position_index",
        )
    return found[0]
