"""Words that come out of files, made fit for a sentence: printable, short, on one line."""

from __future__ import annotations

from collections.abc import Iterable

MAX_SENTENCE = 1000


def sentence(text: str) -> str:
    """A text on one line, without its middle if it is long: what is wrong, and the fix."""
    text = printable(" ".join(text.split()))
    if len(text) <= MAX_SENTENCE:
        return text
    return f"{text[: MAX_SENTENCE // 2]} ... {text[-MAX_SENTENCE // 3 :]}"


def printable(text: str) -> str:
    """The text with `?` for what moves a cursor, colours a terminal or turns the writing round."""
    return "".join(c if c.isprintable() else "?" for c in text)


def shown(value: object, limit: int = 80) -> str:
    """The beginning of a value as text; a number of thousands of digits has none."""
    try:
        return printable(str(value)[:limit])
    except ValueError:
        return f"a huge {type(value).__name__}"


def some(names: Iterable[object], limit: int = 4) -> str:
    """`a, b, c, d and 7 more`, each cut."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shown(name, 100) for name in names[:limit]) + more
