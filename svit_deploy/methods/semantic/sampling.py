"""Where semantic tokens are made from, for graphs and for the plain PyTorch forward."""

from __future__ import annotations

from dataclasses import dataclass

from svit_deploy.backbones.stages import Stage
from svit_deploy.errors import InputError
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.sizes import Misfit

SWIN_SIDE, SWIN_WINDOWS = 14, 2
"""Image tokens and windows along the side of Swin's third stage."""


@dataclass(frozen=True)
class Sampling:
    """How many semantic tokens come from which tokens of a map, whatever the map is of.

    Maps have a row of tokens each, in raster order, and semantic tokens are in the raster order of
    their own map. Of time nothing is known: the frames of a video are as many maps.

    Attributes:
        rows, columns: of the map.
        windows: along either side, that the map is tiled with.
        sample: semantic tokens along either side of a window.
        around: rows and columns of the larger windows that semantic tokens look at.
        stride: from one larger window to the next.
    """

    rows: int
    columns: int
    windows: int
    sample: int
    around: tuple[int, int]
    stride: int = 1

    def cells(self, length: int) -> list[tuple[int, int]]:
        """First and last place but one of each cell of a window of so many tokens.

        They may overlap, as adaptive pooling cuts them.
        """
        count = self.sample
        return [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]

    @property
    def cell(self) -> tuple[int, int] | None:
        """Rows and columns of all cells, if they have the same."""
        sides = [
            {stop - start for start, stop in self.cells(length // self.windows)}
            for length in (self.rows, self.columns)
        ]
        return None if max(map(len, sides)) > 1 else (max(sides[0]), max(sides[1]))

    @property
    def in_window(self) -> int:
        """Semantic tokens of a window."""
        return self.sample**2

    @property
    def seen(self) -> int:
        """Image tokens that those of a window look at."""
        return self.around[0] * self.around[1]

    @property
    def count(self) -> int:
        """Semantic tokens of a map."""
        return self.in_window * self.windows**2


def in_map(rows: int, columns: int, sample: int) -> Sampling:
    """Of a map as a whole."""
    return Sampling(rows, columns, 1, sample, (rows, columns))


def in_windows(sample: int) -> Sampling:
    """Of each window of Swin's third stage, by 10x10 tokens around it, 4 apart."""
    return Sampling(SWIN_SIDE, SWIN_SIDE, SWIN_WINDOWS, sample, (10, 10), 4)


@dataclass(frozen=True)
class HeadedStage(Stage):
    """The blocks of a Vision Transformer, as those of one stage."""

    heads: int

    def block(self, block: int) -> str:
        """A block in the names of weights."""
        return f"blocks.{block}"


def size_misfit(config: ModelConfig, title: str) -> Misfit | None:
    """Why images of another size have no such windows in Swin's third stage."""
    side, (height, width) = SWIN_SIDE * 16, config.image_size
    if (height, width) == (side, side):
        return None
    reason = f"{title} is defined for images of {side}x{side}, not {height}x{width}"
    return Misfit(reason, (side, side))


def check_windows(config: ModelConfig, title: str) -> None:
    """Raises InputError for a Swin of other windows."""
    if config.settings.window != SWIN_SIDE // SWIN_WINDOWS:
        raise InputError(
            f"{title} is defined for windows of 7x7, not {config.settings.window}",
            f"give a complete {title} checkpoint",
        )
