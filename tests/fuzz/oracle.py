"""What a good end of a command is, whatever it was given: a success, or one clear sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from svit_deploy.errors import (
    EXIT_BENCH,
    EXIT_CAPABILITY,
    EXIT_EXPORT,
    EXIT_INPUT,
    EXIT_OK,
    EXIT_USAGE,
    EXIT_VERIFY,
)

GOOD_CODES = {
    EXIT_OK,
    EXIT_USAGE,
    EXIT_INPUT,
    EXIT_CAPABILITY,
    EXIT_EXPORT,
    EXIT_VERIFY,
    EXIT_BENCH,
}
PREFIXES = ("error: ", "warning: ", "note: ")
MAX_SENTENCE = 1000
MAX_CPU_S = 15.0
MAX_GROWTH = 600 * 2**20
"""Bytes of memory beyond what the process had; ten times a case's files come on top."""

Snapshot = dict[str, tuple[int, int] | None]
"""Size and time of change of each file below a folder; None for what is no file."""


@dataclass(frozen=True)
class End:
    """How a command ended.

    Attributes:
        code: its exit code; None where the process was killed, or did not end: `err` says so.
        grown: bytes that its memory grew by, at most.
        outside: files opened that are none of its business.
        changed: files that are not as they were, beside its output; what it left behind.
        output: whether what it was to write is there.
    """

    code: int | None
    out: str = ""
    err: str = ""
    cpu_s: float = 0.0
    grown: int = 0
    given: int = 0
    outside: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    output: bool = False


def complaint(end: End, max_growth: int | None = MAX_GROWTH) -> str | None:
    """What is wrong with an end, or None.

    Args:
        max_growth: None where a graph of the case's is run, which takes the memory it asks for.
    """
    if end.code is None:
        return end.err
    if end.code not in GOOD_CODES:
        return f"exit code {end.code}: {end.err[-300:]}"
    if wrong := _wrong_words(end):
        return wrong
    if end.cpu_s > MAX_CPU_S:
        return f"took {end.cpu_s:.0f} s of the processor"
    if end.code == EXIT_CAPABILITY and max_growth is not None:
        return f"the machine is made responsible: {end.err[-300:]}"
    if max_growth is not None and end.grown > max_growth + 10 * end.given:
        return f"took {end.grown // 2**20} MiB for {end.given} bytes of input"
    if end.outside:
        return f"opened {', '.join(end.outside[:3])}"
    if end.changed:
        return f"left or changed {', '.join(end.changed[:3])}"
    if end.output and end.code not in (EXIT_OK, EXIT_VERIFY, EXIT_BENCH):
        return f"exit code {end.code}, and an output"
    return None


def _wrong_words(end: End) -> str | None:
    for stream, text in (("output", end.out), ("error", end.err)):
        if odd := re.search(r"[^\n\t -~]", "".join(c for c in text if not c.isprintable())):
            return f"standard {stream} holds the control character {odd[0]!r}"
        if "Traceback" in text:
            return f"a traceback on standard {stream}"
    lines = end.err.splitlines()
    if strange := [line for line in lines if not line.startswith(PREFIXES)]:
        return f"standard error says {strange[0][:200]!r}"
    if long := [line for line in lines if len(line) > MAX_SENTENCE]:
        return f"a sentence of {len(long[0])} characters: {long[0][:200]}"
    errors = [line for line in lines if line.startswith("error: ")]
    wanted = 0 if end.code == EXIT_OK else 1
    if len(errors) != wanted and end.code not in (EXIT_VERIFY, EXIT_BENCH):
        return f"exit code {end.code} with {len(errors)} sentences"
    if errors and not (errors[-1] == lines[-1] and errors[-1].endswith(".")):
        return f"no sentence at the end: {lines[-1][:200]!r}"
    if errors and "; " not in errors[-1]:
        return f"no fix is named: {errors[-1]}"
    return None


def snapshot(folder: Path) -> Snapshot:
    found: Snapshot = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        is_file = path.is_file() and not path.is_symlink()
        found[str(path)] = (status.st_size, status.st_mtime_ns) if is_file else None
    return found
