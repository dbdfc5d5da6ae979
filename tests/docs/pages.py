"""The project's Markdown pages, as a CommonMark parser with tables reads them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    file.relative_to(ROOT).as_posix()
    for file in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/*/*.md"))
)
PARSER = MarkdownIt("commonmark").enable("table")
_MARKER = re.compile(r"<!-- not run: (.+) -->\s*")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def tokens_of(page: str) -> list[Token]:
    return PARSER.parse(text_of(page))


@dataclass(frozen=True)
class Block:
    """A fenced or indented block of code.

    Attributes:
        language: `console` for commands, which begin with `$ `.
        reason: why the block cannot run here, as the comment in front of it says; else None.
    """

    page: str
    line: int
    language: str
    content: str
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """What is typed, word by word, without comments."""
        joined = self.content.replace("\\\n", " ")
        lines = [line.removeprefix("$ ") for line in joined.splitlines() if line.startswith("$ ")]
        return [shlex.split(line, comments=True) for line in lines]


def blocks_of(page: str) -> Iterator[Block]:
    reason = None
    for token in tokens_of(page):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            yield Block(page, token.map[0] + 1, token.info.strip(), token.content, reason)
        found = _MARKER.fullmatch(token.content) if token.type == "html_block" else None
        reason = found[1] if found else None


def slug_of(heading: str) -> str:
    """The anchor that code hosts and the site give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
