"""The seam between a backbone and a method: which tokens a block computes.

Once in graphs (`GraphTokens`), once in the plain PyTorch forward (`ReferenceTokens`). A method has
a subclass of each; the backbone runs its blocks through them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from svit_deploy.names import block_name

if TYPE_CHECKING:
    from torch import Tensor

GatedForward = Generator[tuple[int, "Tensor"], "Tensor", Any]
"""A forward pass that stops at each gate: gives its number and margins, takes its keep mask."""


See = Callable[[str, "Tensor"], "Tensor"]
"""Is told of what each stage gave, by the graph's name for it, and tells what to go on with."""


@dataclass(frozen=True)
class Decided:
    """What the graph's outputs tell of one selection; see `model.result.Selected`.

    Attributes:
        keep: `[B, S]` bool.
        margin: `[B, S]` float32.
        source: `[B, S]` int64, where tokens are merged.
        overflow: `[B, 1]` int64, where there is a budget.
    """

    keep: str
    margin: str
    source: str | None = None
    overflow: str | None = None


class GraphTokens:
    """The tokens of a graph on their way through the blocks: all of them, in every block.

    A method that selects overrides `block`, and what of the rest does not hold for it.

    Args:
        writer: the backbone's `writer.GraphWriter`.

    Attributes:
        rows: what the last block gave, `[B * count, C]`.
        count: tokens of each image in it, a number or an int64 vector.
        decided: the selections so far.
    """

    def __init__(self, writer: Any, rows: str) -> None:
        self.writer, self.graph, self.config = writer, writer.graph, writer.config
        self.rows = rows
        self.count: int | str = writer.num_tokens
        self.decided: list[Decided] = []

    def step(self, block: int) -> None:
        """Runs a block, and gives its result the name that `verify` knows it by."""
        with self.graph.scope(f"block_{block}"):
            rows = self.block(block)
        self.rows = self.graph.rename(rows, block_name(block))

    def block(self, block: int) -> str:
        """Writes a block, and the selection in front of it or inside; returns its result."""
        return self.writer.plain_block(self.rows, block, self.count)

    def for_head(self) -> tuple[str, int | str]:
        """What a classification head reads: rows, and how many of them each image has."""
        return self.rows, self.count

    def map(self) -> str:
        """The complete map of patches in raster order `[B * N, C]`, between two blocks."""
        return self.writer.patches_of(self.rows)

    def put_map(self, x: str) -> None:
        """Takes a map back that something between two blocks has changed."""
        self.rows = self.writer.with_patches(self.rows, x)


class ReferenceTokens:
    """The tokens on their way through the blocks: all of them, in every block.

    A method that selects overrides `step`, or `block` where thresholds on margins decide.

    Args:
        backbone: its `reference.BackboneReference`.

    Attributes:
        rows: what the last block gave, `[B, T, C]`.
        values: the decisions so far, as the graph holds them (`Method.values`).
    """

    def __init__(self, backbone: Any, rows: Tensor) -> None:
        self.backbone, self.config, self.rows = backbone, backbone.config, rows
        self.values: dict[str, Tensor] = {}

    def decide(self, name: str, value: Tensor) -> Tensor:
        """A decision under the graph's name for it; one that is forced comes before the own."""
        value = self.values[name] = self.backbone.forced.get(name, value)
        return value

    def block(self, block: int) -> GatedForward:
        """Runs a block; stops at a gate in it, if thresholds decide."""
        self.step(block)
        return
        yield

    def step(self, block: int) -> None:
        """Runs a block that asks nobody."""
        self.rows = self.backbone.plain_block(self.rows, block)

    @property
    def visible(self) -> Tensor:
        """What the graph names as the block's result `[B, T, C]`, NaN where a token is gone."""
        return self.rows

    def show(self, name: str, see: See) -> None:
        """Shows what is `visible` under its name, and goes on with what comes back."""
        shown = self.visible
        given = see(name, shown)
        if given is not shown:
            self.accept(given)

    def for_head(self) -> Tensor:
        """What a classification head reads `[B, T, C]`."""
        return self.rows

    def accept(self, visible: Tensor) -> None:
        """Takes other values for what is `visible`."""
        self.rows = visible.where(~visible.isnan(), self.rows)

    def map(self) -> Tensor:
        """The complete map of patches in raster order `[B, N, C]`, between two blocks."""
        return self.rows[:, self.config.prefix_tokens :]

    def put_map(self, x: Tensor) -> None:
        """Takes a map back that something between two blocks has changed."""
        import torch

        prefix = self.config.prefix_tokens
        self.rows = torch.cat([self.rows[:, :prefix], x], dim=1) if prefix else x
