"""What a page is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """Rows below headings.

    Attributes:
        bad: places of the rows that are marked.
        words: how many columns, the first ones and the last one beside, are no figures.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    bad: frozenset[int] = frozenset()
    words: int = 1
    template: ClassVar[str] = "table.html"


@dataclass(frozen=True)
class Charts:
    """Drawings side by side, each an `<svg>`."""

    title: str
    drawings: Sequence[Markup]
    template: ClassVar[str] = "charts.html"


@dataclass(frozen=True)
class Picture:
    """A PNG file's bytes, and what stands below it."""

    caption: str
    png: bytes


@dataclass(frozen=True)
class Gallery:
    """Pictures in rows."""

    title: str
    pictures: Sequence[Picture]
    template: ClassVar[str] = "gallery.html"


@dataclass(frozen=True)
class Lines:
    """Sentences, one below the other."""

    title: str
    lines: Sequence[str]
    template: ClassVar[str] = "lines.html"


Section = Table | Charts | Gallery | Lines
