"""Work on many items that may be done anywhere: in this process, or in several elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

X = TypeVar("X")
Y = TypeVar("Y")


@dataclass(frozen=True)
class Opened(Generic[X, Y]):
    """A job that has what it needs, an engine for example.

    Attributes:
        told: what it tells of itself; the same wherever it is opened.
        cut: results are the same if the items are parted behind any multiple of so many.
        shard: items that are worth being sent elsewhere together, such a multiple.
        work: gives the results of items, in order, while it takes them in.
    """

    told: Any
    cut: int
    work: Callable[[Iterable[X]], Iterator[Y]]
    shard: int = 1


class Job(Protocol[X, Y]):
    """Can be pickled before it is opened, and so can its items and its results."""

    def open(self) -> AbstractContextManager[Opened[X, Y]]:
        """Opens what it needs, in the thread that will do the work."""
