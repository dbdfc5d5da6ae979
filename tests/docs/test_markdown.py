"""Tables are tables wherever the pages are read, and every command is one that the tests run."""

from __future__ import annotations

import re

import pytest
from markdown_it.token import Token

from tests.docs.pages import PAGES, PARSER, blocks_of, text_of, tokens_of

COMMAND = re.compile(r"^\s*(\$ |svit-deploy |python |pip |make |polygraphy )", re.M)


def cells_of(line: str) -> list[str]:
    """A row's cells; a bar behind a backslash is none's end."""
    return re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))


def problems(text: str, tokens: list[Token]) -> list[str]:
    """What is wrong with the tables of a page, by line."""
    lines, found, before = text.splitlines(), [], None
    for token in tokens:
        if token.level == 0 and token.type == "table_open":
            assert token.map is not None
            first, end = token.map
            if before is not None and before.type == "table_close":
                found.append(f"{first + 1}: nothing stands between this table and the one above")
            if first and lines[first - 1].strip():
                found.append(f"{first + 1}: glued to the line above")
            width = len(cells_of(lines[first]))
            for number in range(first, end):
                cells = len(cells_of(lines[number]))
                if not lines[number].startswith("|"):  # a paragraph that the table swallowed
                    found.append(f"{number + 1}: glued to the table above")
                elif cells != width:
                    found.append(f"{number + 1}: {cells} cells, the header has {width}")
        if token.level == 0:
            before = token
    paragraphs = (t for t in tokens if t.type == "inline" and re.search(r"^\|", t.content, re.M))
    return found + [f"no table, though it looks like one: {t.content[:60]}" for t in paragraphs]


@pytest.mark.parametrize("page", PAGES)
def test_tables(page):
    assert not problems(text_of(page), tokens_of(page))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("| a | b |\n|---|---|\n| 1 | 2 |\n\n| c |\n|---|\n| 3 |\n", "nothing stands between"),
        ("| a | b |\n|---|---|\n| 1 | 2 | 3 |\n", "3 cells, the header has 2"),
        ("| a | b |\n|---|---|\n| 1 |\n", "1 cells, the header has 2"),
        ("| a | b |\n|---|---|\n| 1 | 2 |\nAnd so on.\n", "glued to the table above"),
        ("Words\n| a | b |\n|---|---|\n| 1 | 2 |\n", "glued to the line above"),
        ("| a | b |\n|---|\n| 1 | 2 |\n", "looks like one"),
    ],
)
def test_a_broken_table_is_seen(text, problem):
    assert any(problem in found for found in problems(text, PARSER.parse(text)))


@pytest.mark.parametrize("page", PAGES)
def test_commands_stand_in_console_blocks(page):
    for block in blocks_of(page):
        if block.language == "console":
            assert block.commands, block
            continued = block.content.replace("\\\n", " ").splitlines()
            assert all(line.startswith("$ ") for line in continued), block
        else:
            assert not COMMAND.search(block.content), block
            assert block.reason is None, block
