"""Writing a folder that is complete or absent, whatever happens in between."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from svit_deploy.errors import ExportError


@contextmanager
def write_folder(output: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """Gives a temporary folder that becomes `output`, whole, when the block ends well.

    The folder stands beside `output`; it is removed when the block fails, and when the process
    was killed the next one to write the same output removes it.

    Args:
        check: raises an error when `output` is in the way; what it lets pass is replaced. It is
            asked again at the end, for another process may have been faster.

    Raises:
        ExportError: the disk is full or not writable.
    """
    output = Path(output).absolute()
    prefix = f".{output.name}.partial-"
    with _explained(output):
        check(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(output.parent, prefix)
        with _new_folder(output.parent, prefix) as folder:
            try:
                yield folder
                _flush(folder)
                _put_in_place(folder, output, check)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise


def check_folder(output: Path, check: Callable[[Path], None]) -> None:
    """Raises what `write_folder` would raise at its start; call it before a long run.

    Args:
        check: as there.
    """
    output = Path(output).absolute()
    with _explained(output):
        check(output)
        place = next(folder for folder in output.parents if folder.exists())
        if not place.is_dir():
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(place, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def _explained(output: Path) -> Iterator[None]:
    """Makes an ExportError of what the system says of a folder."""
    try:
        yield
    except OSError as error:
        raise ExportError(
            f"cannot write {output} ({error.strerror or error})",
            "give a folder you may write to, on a disk with room, with -o",
        ) from error


def _flush(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("r+b") as stream:
                os.fsync(stream.fileno())


def _put_in_place(folder: Path, output: Path, check: Callable[[Path], None]) -> None:
    """Renames `folder` to `output`; what stood there comes back if that fails."""
    try:
        folder.rename(output)  # onto nothing or an empty folder
        return
    except OSError:
        check(output)
        if not output.exists():
            raise
    replaced = folder.with_name(f"{folder.name}-replaced")
    output.rename(replaced)
    try:
        folder.rename(output)
    except BaseException:
        replaced.rename(output)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def _new_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder under its lock."""
    while True:
        folder = parent / f"{prefix}{secrets.token_hex(6)}"
        folder.mkdir()
        with _lock(folder, wait=True):
            if folder.exists():  # not taken for a leftover before it was locked
                yield folder
                return


def _remove_leftovers(parent: Path, prefix: str) -> None:
    """Removes temporary folders of processes that no longer run."""
    for folder in parent.iterdir():
        if folder.name.startswith(prefix):
            with _lock(folder) as is_ours:
                if is_ours:
                    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _lock(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone holds the folder; when it dies the system lets go of it.

    Never so on Windows and on file systems without such locks: leftovers stay there.
    """
    if sys.platform == "win32":
        yield False
        return
    import fcntl

    descriptor, is_ours = None, False
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = True
    try:
        yield is_ours
    finally:
        if descriptor is not None:
            os.close(descriptor)
