"""Writing a folder that is complete or absent, whatever happens in between."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from svit_deploy.errors import ExportError
from svit_deploy.io.partial import beside, lock, remove, replaced_name

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


@contextmanager
def write_folder(output: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """Gives a temporary folder that becomes `output`, whole, when the block ends well.

    The folder stands beside `output` (`partial.beside`). What stood at `output` and what comes
    there change places in one step, where the system can.

    Args:
        check: raises an error when `output` is in the way; what it lets pass is replaced. It is
            asked again at the end, for another process may have been faster.

    Raises:
        ExportError: the disk is full or not writable.
    """
    output = Path(output).absolute()
    with _explained(output):
        check(output)
        with beside(output, Path.mkdir) as folder:
            check(output)  # what a killed process was replacing may be back
            yield folder
            _flush(folder)
            _put_in_place(folder, output, check)


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
    """Renames `folder` to `output`; what stood there is then in the place of `folder`, or gone."""
    try:
        folder.rename(output)  # onto nothing or an empty folder
        return
    except OSError:
        check(output)
        if not output.exists():
            raise
    if not _exchange(folder, output):
        _replace(folder, output)


def _exchange(one: Path, other: Path) -> bool:
    """Whether two folders have changed places, in one step; else they are where they were."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library from before 2018
        return False
    code: int = rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    return code == 0


def _replace(folder: Path, output: Path) -> None:
    """In two steps; what stood there comes back if the second one fails or never comes."""
    replaced = replaced_name(folder)
    with lock(output):  # not to be taken for a leftover in between
        output.rename(replaced)
        try:
            folder.rename(output)
        except BaseException:
            replaced.rename(output)
            raise
    remove(replaced)
