"""STViT on Video Swin: semantic tokens of each frame, as on Swin.

That is all that the paper says. Patches are Video Swin's own, without a stem of convolutions: only
these cost what its Table 6 tells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from svit_deploy.backbones.swin.settings import SwinStage
from svit_deploy.backbones.videoswin import VideoSwin
from svit_deploy.backbones.videoswin.settings import stages
from svit_deploy.errors import InputError
from svit_deploy.methods.semantic.sampling import SWIN_SIDE, SWIN_WINDOWS
from svit_deploy.methods.stvit.graph import StvitVideoGraph
from svit_deploy.methods.stvit.settings import Layout, StvitOnVideoSettings
from svit_deploy.methods.stvit.swin import StvitBlocks, StvitOnSwin, StvitSwinDims
from svit_deploy.model.config import ModelConfig

if TYPE_CHECKING:
    from svit_deploy.backbones.reference import BackboneReference

WINDOW = SWIN_SIDE // SWIN_WINDOWS


@dataclass(frozen=True)
class StvitVideoDims(StvitSwinDims):
    """With what Video Swin's tell."""

    window_size: tuple[int, ...] = ()
    patch_frames: int = 0


class StvitVideoSwin(StvitBlocks, VideoSwin):
    graph = StvitVideoGraph

    def reference(self) -> type[BackboneReference]:
        from svit_deploy.methods.stvit.reference import StvitVideoReference

        return StvitVideoReference


class StvitOnVideo(StvitOnSwin):
    settings = StvitOnVideoSettings
    dims = StvitVideoDims

    def check(self, config: ModelConfig) -> None:
        settings = config.settings
        if settings.window_size[1:] != (WINDOW, WINDOW):
            raise InputError(
                f"{self.title} is defined for windows of {WINDOW}x{WINDOW}, not "
                f"{'x'.join(map(str, settings.window_size[1:]))}",
                f"give a complete {self.title} checkpoint",
            )
        self.check_semantic(config)
        frames, span = config.frames // settings.patch_frames, settings.time_window
        if span < 1 or frames % min(span, frames):
            raise InputError(
                f"time_window is {span}, and {config.frames} frames have {frames} in patches",
                f"give a divisor of {frames}, or another number of frames",
            )
        if settings.relative_pos and min(span, frames) > 1:
            raise InputError(
                "the biases by position are those of a frame, and time_window is "
                f"{settings.time_window}",
                "add --set time_window=1",
            )

    def layout(self, config: ModelConfig) -> Layout:
        frames = config.frames // config.settings.patch_frames
        places = [(_of_a_frame(stage), b) for stage in stages(config) for b in range(stage.depth)]
        together = min(config.settings.time_window, frames)
        layout = self.layout_of(config, places)
        return replace(layout, maps=frames, together=together)


def _of_a_frame(stage: Any) -> SwinStage:
    return SwinStage(
        index=stage.index,
        rows=stage.rows,
        columns=stage.columns,
        width=stage.width,
        heads=stage.heads,
        depth=stage.depth,
        window=WINDOW,
    )
