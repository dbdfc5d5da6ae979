"""Arrays that engines are fed and give, in host memory or on a GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Union

import numpy as np


@dataclass(frozen=True)
class OnDevice:
    """An array in a GPU's memory, until the engine that gave it runs again or closes."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, count: int) -> OnDevice:
        """The first rows of it."""
        return replace(self, shape=(count, *self.shape[1:]))


Feed = Union[np.ndarray, OnDevice]  # noqa: UP007 - evaluated on Python 3.10
"""What an engine is fed, and gives: an array in host memory or on the device."""


def in_host(found: Mapping[str, Feed]) -> dict[str, np.ndarray]:
    """What a run that kept nothing on the device gave."""
    arrays = {name: array for name, array in found.items() if isinstance(array, np.ndarray)}
    assert len(arrays) == len(found)
    return arrays
