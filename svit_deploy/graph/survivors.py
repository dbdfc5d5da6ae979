"""Which tokens are left, where a method removes or ranks them: for the graph's outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from svit_deploy.graph.builder import INT64_MAX, GraphBuilder


class Survivors:
    """Tracks which tokens of an image are left, for `keep_mask` and `margin` alone.

    Args:
        like: any value whose first axis is the batch.
        width: tokens to tell about, numbered as in the image; those that a method adds last.
            A number, or an int64 vector.
        tokens: S, the tokens there are at first, the same.
        prefix: of them, those that always stay.
    """

    def __init__(
        self, graph: GraphBuilder, like: str, width: int | str, tokens: int | str, prefix: int
    ) -> None:
        self.graph, self.width, self.prefix = graph, width, prefix
        self.batch = graph.shape(like, 0)
        self.places = self.numbers(tokens)  # [B, T]: who stands where
        self.parts: str | None = None  # [B, S]: what each is part of, where tokens are merged

    def everywhere(self, row: ArrayLike, dtype: Any = np.int64) -> str:
        """A row `[1, K]` for each image."""
        shape = self.graph.op("Concat", self.batch, self.graph.constant([1]), axis=0)
        return self.graph.op("Expand", self.graph.constant(row, dtype), shape)

    def numbers(self, count: int | str) -> str:
        """0, 1, ... count - 1 for each image `[B, count]`."""
        if isinstance(count, int):
            return self.everywhere([list(range(count))])
        shape = self.graph.op("Concat", self.batch, self.graph.constant([1]), axis=0)
        return self.graph.op("Expand", self.graph.range(count), shape)

    def nothing(self) -> str:
        """False for every token, `[B, width]`."""
        if isinstance(self.width, int):
            return self.everywhere([[False] * self.width], bool)
        return self.graph.op("Less", self.numbers(self.width), self.graph.constant(0))

    def gone(self) -> str:
        """Margins of an image of which only the prefix is left, `[B, width]`."""
        if isinstance(self.width, int):
            row = [[np.inf] * self.prefix + [-np.inf] * (self.width - self.prefix)]
            return self.everywhere(row, np.float32)
        graph = self.graph
        numbers = self.numbers(self.width)
        beyond = graph.op("GreaterOrEqual", numbers, graph.constant(self.prefix))
        ends = [graph.constant(value, np.float32) for value in (-np.inf, np.inf)]
        return graph.op("Where", beyond, *ends)

    def spread(self, scores: str) -> str:
        """Scores `[B, M]` of the tokens after the prefix -> margins `[B, width]`."""
        places = self.graph.slice(self.places, self.prefix, INT64_MAX)
        return self.graph.op("ScatterElements", self.gone(), places, scores, axis=1)

    def keep(self, places: str) -> str:
        """Only the tokens at `places [B, T']` are left, in that order; which: `[B, width]`."""
        self.places = self.graph.op("GatherElements", self.places, places, axis=1)
        nothing = self.nothing()
        true = self.graph.op("GreaterOrEqual", self.places, self.graph.constant(0))
        return self.graph.op("ScatterElements", nothing, self.places, true, axis=1)

    def add(self, number: int | str) -> None:
        """A new token at the end; its number as `width` is."""
        if isinstance(number, int):
            new = self.everywhere([[number]])
        else:
            new = self.graph.op("Add", self.everywhere([[0]]), number)
        self.places = self.graph.op("Concat", self.places, new, axis=1)
