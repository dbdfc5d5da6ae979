"""The glossary's terms are linked from the pages that use them, where each page first does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.docs.pages import PAGES, slug_of, tokens_of

GLOSSARY = "docs/glossary.md"
TERMS = {
    slug_of(inline.content): inline.content
    for opening, inline in pairwise(tokens_of(GLOSSARY))
    if opening.type == "heading_open" and opening.tag == "h3"
}


def prose_of(page: str) -> Iterator[tuple[str, str | None]]:
    """A page's text piece by piece, without headings, and the term that each piece links to."""
    heading, term = False, None
    for token in tokens_of(page):
        if token.type in ("heading_open", "heading_close"):
            heading = token.type == "heading_open"
        for child in () if heading else token.children or ():
            if child.type == "link_open":
                target = str(child.attrs["href"])
                term = target.partition("#")[2] if "glossary.md#" in target else None
            elif child.type == "link_close":
                term = None
            elif child.content and child.type in ("text", "code_inline"):
                yield child.content, term
        yield "\n", None


def linked_terms(page: str) -> dict[str, str]:
    """Each term that a page links, and the words of its first link."""
    words: dict[str, str] = {}
    for text, term in prose_of(page):
        if term is not None:
            words.setdefault(term, text)
    return words


@pytest.mark.parametrize("page", [page for page in PAGES if page != GLOSSARY])
def test_links_lead_to_terms_and_stand_at_the_first_use(page):
    for term, words in linked_terms(page).items():
        assert term in TERMS, f"{page} links {term}, which {GLOSSARY} does not have"
        use = re.compile(rf"(?<![\w-]){re.escape(words)}(?![\w-]|\.\w)", re.IGNORECASE)
        first = next(linked for text, linked in prose_of(page) if use.search(text))
        assert first == term, f"{page} uses {words!r} before it links it"


def test_every_term_is_linked():
    linked = {term for page in PAGES if page != GLOSSARY for term in linked_terms(page)}
    assert not TERMS.keys() - linked


def test_every_term_is_explained():
    tokens = [token for token in tokens_of(GLOSSARY) if token.type != "html_block"]
    for opening, following in zip(tokens, tokens[3:], strict=False):
        if opening.type == "heading_open" and opening.tag == "h3":
            assert following.type == "paragraph_open", opening.map
    assert len(TERMS) == len(set(TERMS.values())) > 30
