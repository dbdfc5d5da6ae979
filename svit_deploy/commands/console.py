"""Where reports are printed: a terminal, for which they are laid out, or a pipe or file."""

from __future__ import annotations

from typing import Any

from rich.console import Console

UNBOUNDED = 1_000_000
"""Columns of what has no width."""


class _Terminal(Console):
    def on_broken_pipe(self) -> None:  # rich would end the process with exit code 1
        raise BrokenPipeError


class _Stream(_Terminal):
    """No terminal: nothing is wrapped, cut or padded, so that a line stays one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(width=UNBOUNDED, **options)

    def print(self, *objects: Any, **how: Any) -> None:
        with self.capture() as captured:
            super().print(*objects, **how)
        lines = captured.get().split("\n")
        self.file.write("\n".join(line.rstrip() for line in lines))


def make_console(*, stderr: bool = False) -> Console:
    """Standard output or standard error, whichever way it is read."""
    console = _Terminal(stderr=stderr)
    return console if console.file.isatty() else _Stream(stderr=stderr)


def headline(console: Console, text: str) -> None:
    """A line across a terminal; elsewhere it has no width."""
    if isinstance(console, _Stream):
        console.print(f"--- {text} ---", highlight=False)
    else:
        console.rule(text, characters="-")
