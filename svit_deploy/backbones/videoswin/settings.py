"""The stages of a Video Swin: maps of three axes, of which the time is never halved."""

from __future__ import annotations

from dataclasses import dataclass

from svit_deploy.backbones.stages import STAGES
from svit_deploy.backbones.swin.settings import WindowStage
from svit_deploy.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class VideoSwinSettings:
    """What the weights tell.

    Attributes:
        depths, stage_heads: blocks and heads of each stage.
        window_size: places of a window along time, height and width.
        patch_frames: frames of a patch.
    """

    depths: tuple[int, ...]
    stage_heads: tuple[int, ...]
    window_size: tuple[int, ...]
    patch_frames: int


@dataclass(frozen=True)
class VideoStage(WindowStage):
    """A stage with its frames; windows are cut to a map that is smaller, and not moved there.

    Attributes:
        window_size: of windows that are not cut.
    """

    frames: int
    window_size: tuple[int, ...]

    @property
    def sides(self) -> tuple[int, int, int]:
        return self.frames, self.rows, self.columns

    @property
    def tokens(self) -> int:
        return self.frames * self.rows * self.columns

    @property
    def windows(self) -> tuple[int, ...]:
        return tuple(map(min, self.sides, self.window_size))

    def shifts(self, block: int) -> tuple[int, ...]:
        sides = zip(self.sides, self.window_size, strict=True)
        return tuple(window // 2 if block % 2 and side > window else 0 for side, window in sides)


def stages(config: ModelConfig) -> list[VideoStage]:
    settings: VideoSwinSettings = config.settings
    rows, columns = config.grid
    return [
        VideoStage(
            index=i,
            rows=-(-rows >> i),
            columns=-(-columns >> i),
            width=config.embed_dim << i,
            heads=settings.stage_heads[i],
            depth=settings.depths[i],
            frames=config.frames // settings.patch_frames,
            window_size=settings.window_size,
        )
        for i in range(STAGES)
    ]
