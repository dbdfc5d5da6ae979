"""What a command leaves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """A command's exit code and the text of both streams."""

    code: int
    out: str
    err: str
