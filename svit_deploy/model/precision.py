"""What of a graph's precision several parts of the package must agree on."""

from __future__ import annotations

from dataclasses import dataclass

METHODS = ("minmax", "entropy", "percentile")
"""How the range of a layer's inputs is chosen out of what images show."""


@dataclass(frozen=True)
class Format:
    """Numbers of eight bits that the linear layers of blocks multiply; all else is float32.

    Attributes:
        name: as after `--precision`.
        largest: so many steps is the largest input of a layer, and the largest weight of each of
            its outputs.
        methods: those of `METHODS` that make sense of its numbers.
    """

    name: str
    largest: int
    methods: tuple[str, ...] = METHODS


INT8 = Format("int8", 127)
FP8 = Format("fp8", 448, methods=("minmax", "percentile"))
"""float8e4m3fn: its numbers are the denser the smaller they are, and entropy takes them as even."""
FORMATS = {one.name: one for one in (INT8, FP8)}
"""By the precision of a graph."""


def has_products(compute_capability: str, precision: str) -> bool:
    """Whether a GPU of a compute capability such as `8.9` multiplies numbers of a precision."""
    major, minor = map(int, compute_capability.split("."))
    return precision != FP8.name or (major, minor) >= (8, 9)
