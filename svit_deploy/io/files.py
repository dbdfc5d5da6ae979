"""Single files: reading, their hash, writing one whole or not at all, and where to cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from svit_deploy.errors import CapabilityError, ExportError, InputError, UsageError
from svit_deploy.io.partial import beside


def hash_file(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around what reads a file: an error of the system becomes an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error})", "check who may read it"
        ) from None


def cache_folder(name: str) -> Path:
    """Where things of one kind are kept that can be made again; it may not exist yet.

    The folder `name` in $SVIT_DEPLOY_CACHE, $XDG_CACHE_HOME/svit-deploy or ~/.cache/svit-deploy.

    Raises:
        CapabilityError: neither variable is set, and there is no home folder.
    """
    if cache := os.environ.get("SVIT_DEPLOY_CACHE"):
        return Path(cache) / name
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "svit-deploy" / name
    try:
        return Path.home() / ".cache" / "svit-deploy" / name
    except RuntimeError as error:
        raise CapabilityError(
            f"there is no home folder to keep {name} in", "set SVIT_DEPLOY_CACHE to a folder"
        ) from error


def check_writable(path: Path, option: str) -> None:
    """Refuses a file that `write_file` could not write; call it before a long run.

    Raises:
        UsageError: `path` is a folder, or the place is not a folder or closed to us.
    """
    fix = f"give another file with {option}"
    if path.is_dir():
        raise UsageError(f"{path} is a folder", fix)
    place = next(folder for folder in path.absolute().parents if folder.exists())
    if not place.is_dir():
        raise UsageError(f"{path} cannot be written: {place} is not a folder", fix)
    if not os.access(path if path.exists() else place, os.W_OK):
        raise UsageError(f"{path} cannot be written (Permission denied)", fix)


@contextmanager
def write_file(path: Path, option: str) -> Iterator[Path]:
    """Gives a temporary file beside `path` that becomes it, whole, when the block ends well.

    Missing folders are made. A device or a pipe (/dev/null, /dev/stdout) is written directly.

    Args:
        option: what the user named the file with, for the message.

    Raises:
        ExportError: the disk is full or not writable.
    """
    try:
        path = path.resolve()  # what a link points to is replaced, not the link
        if path.exists() and not path.is_file():
            yield path
            return
        with beside(path, lambda part: part.touch(exist_ok=False)) as part:
            yield part
            part.replace(path)
    except OSError as error:
        raise ExportError(
            f"cannot write {path} ({error.strerror or error})",
            f"give a place with room that you may write to, with {option}",
        ) from error
