"""The books of which tokens are left, where a method removes them for good."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from svit_deploy.export.builder import INT64_MAX, GraphBuilder


class Survivors:
    """Keeps the books of which tokens of an image are left, for `keep_mask` and `margin` alone.

    Args:
        like: any value whose first axis is the batch.
        columns: tokens to tell about, numbered as in the image; those that a method adds last.
        tokens: S, the tokens there are at first.
        prefix: of them, those that always stay.
    """

    def __init__(
        self, graph: GraphBuilder, like: str, columns: int, tokens: int, prefix: int
    ) -> None:
        self.graph, self.columns, self.prefix = graph, columns, prefix
        self.batch = graph.shape(like, 0)
        self.places = self.everywhere([list(range(tokens))])  # [B, T]: who stands where
        self.parts: str | None = None  # [B, S]: what each is part of, where tokens are merged

    def everywhere(self, row: ArrayLike, dtype: Any = np.int64) -> str:
        """A row `[1, K]` for each image."""
        shape = self.graph.op("Concat", self.batch, self.graph.constant([1]), axis=0)
        return self.graph.op("Expand", self.graph.constant(row, dtype), shape)

    def spread(self, scores: str) -> str:
        """Scores `[B, M]` of the tokens after the prefix -> margins `[B, columns]`."""
        row = [[np.inf] * self.prefix + [-np.inf] * (self.columns - self.prefix)]
        places = self.graph.slice(self.places, self.prefix, INT64_MAX)
        empty = self.everywhere(row, np.float32)
        return self.graph.op("ScatterElements", empty, places, scores, axis=1)

    def keep(self, places: str) -> str:
        """Only the tokens at `places [B, T']` are left, in that order; which: `[B, columns]`."""
        self.places = self.graph.op("GatherElements", self.places, places, axis=1)
        empty = self.everywhere([[False] * self.columns], bool)
        true = self.graph.op("GreaterOrEqual", self.places, self.graph.constant(0))
        return self.graph.op("ScatterElements", empty, self.places, true, axis=1)

    def add(self, column: int) -> None:
        """A new token at the end."""
        self.places = self.graph.op("Concat", self.places, self.everywhere([[column]]), axis=1)
