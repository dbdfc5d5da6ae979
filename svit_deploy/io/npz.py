"""Reads NumPy files written by others: plain arrays only, nothing is ever unpickled."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from svit_deploy.errors import InputError

MAX_BYTES = 8 * 2**30


def read_npz(
    path: Path, keys: Sequence[str], *, max_bytes: int = MAX_BYTES
) -> dict[str, np.ndarray]:
    """Reads those of `keys` that the archive holds; its other arrays are not touched.

    Args:
        max_bytes: what the archive may declare to unpack to, so that a small file cannot fill
            the memory.

    Raises:
        InputError: not a zip archive, truncated, damaged, too large when unpacked, or an array of
            Python objects.
    """
    with _user_errors(path):
        if not zipfile.is_zipfile(path):
            raise InputError(
                f"{path} is not an .npz archive or is truncated", "write it again with numpy.savez"
            )
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
        if declared > max_bytes:
            raise InputError(
                f"{path} would unpack to {declared} bytes, more than {max_bytes}",
                "do not use it if it is not yours; else split it",
            )
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in keys if key in archive.files}


def read_npy(path: Path) -> np.ndarray:
    """Reads one array from an .npy file.

    Raises:
        InputError: not an .npy file, truncated, or an array of Python objects.
    """
    with _user_errors(path), path.open("rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def reason(error: Exception) -> str:
    """What an exception says, in one short line, or its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextmanager
def _user_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    # A damaged file fails in many ways: ValueError, BadZipFile, zlib.error, MemoryError, ...
    except Exception as error:
        raise InputError(
            f"{path} cannot be read ({reason(error)})",
            "write it again with numpy.savez from plain number arrays",
        ) from error
