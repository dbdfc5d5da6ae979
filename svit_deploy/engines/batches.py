"""An engine of fixed batch range behind any batch size."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from svit_deploy.engines.arrays import Feed, OnDevice, in_host
from svit_deploy.engines.base import Engine, Wrapped


class Batches(Wrapped):
    """Splits a batch that is too large for an engine, and fills one up that is too small.

    Args:
        engine: all of its inputs and outputs have the batch for their first axis.
        smallest, largest: batch sizes it takes.
    """

    def __init__(self, engine: Engine, smallest: int, largest: int) -> None:
        super().__init__(engine)
        self.smallest, self.largest = smallest, largest

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        count = len(next(iter(feeds.values())))
        parts = [
            self._part(feeds, slice(start, min(start + self.largest, count)), outputs)
            for start in range(0, count, self.largest)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def run_kept(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str] | None = None,
        kept: Collection[str] = (),
    ) -> dict[str, Feed]:
        """Keeps nothing on the device where it has to split: the next part would be put over it."""
        count = feeds[next(iter(feeds))].shape[0]
        if not kept or count > self.largest:
            return super().run_kept(feeds, outputs, kept)
        found = self.engine.run_kept(self._filled(in_host(feeds)), outputs, kept)
        return {
            name: array.rows(count) if isinstance(array, OnDevice) else array[:count]
            for name, array in found.items()
        }

    def _part(
        self, feeds: Mapping[str, np.ndarray], rows: slice, outputs: Sequence[str] | None
    ) -> dict[str, np.ndarray]:
        size = rows.stop - rows.start
        filled = self._filled({name: array[rows] for name, array in feeds.items()})
        found = self.engine.run(filled, outputs)
        return {name: array[:size] for name, array in found.items()}

    def _filled(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            name: np.resize(array, (max(len(array), self.smallest), *array.shape[1:]))
            for name, array in feeds.items()
        }
