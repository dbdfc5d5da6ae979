"""What is being written stands beside its place until it is whole.

What a killed process left there is removed by the next that writes the same.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

REPLACED = "-replaced"


@contextmanager
def beside(output: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """A new, hidden file or folder in the folder of `output`, with its suffix and under a lock.

    It is removed at the end, unless it was moved away, and whatever stands in its place then.

    Args:
        make: creates it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(output)
    while True:
        part = output.with_name(f".{output.name}.partial-{secrets.token_hex(6)}{output.suffix}")
        try:
            make(part)
            with lock(part, wait=True):
                if part.exists():  # not taken for a leftover before it was locked
                    yield part
                    return
        finally:
            try:
                remove(part)
            except BaseException:  # Ctrl-C while it is removed
                remove(part)
                raise


def remove(path: Path) -> None:
    """Removes a file or a folder, as far as that goes."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def replaced_name(part: Path) -> Path:
    """Where `output` stands while `part` takes its place."""
    return part.with_name(part.name + REPLACED)


def _remove_leftovers(output: Path) -> None:
    """Removes what processes left that no longer run; puts back what they were replacing."""
    name, suffix = re.escape(output.name), re.escape(output.suffix)
    ours = re.compile(rf"\.{name}\.partial-[0-9a-f]{{12}}{suffix}({REPLACED})?")
    for path in output.parent.iterdir():
        if found := ours.fullmatch(path.name):
            with lock(path) as is_ours:
                if is_ours and found[1] and not output.exists():
                    path.rename(output)
                elif is_ours:
                    remove(path)


@contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone holds a file or folder; when it dies the system lets go of it.

    Never so on Windows and on file systems without such locks: leftovers stay there.
    """
    if sys.platform == "win32":
        yield False
        return
    import fcntl

    descriptor, is_ours = None, False
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe is nobody's
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = True
    try:
        yield is_ours
    finally:
        if descriptor is not None:
            os.close(descriptor)
