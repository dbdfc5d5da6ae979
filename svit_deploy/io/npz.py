"""Reads NumPy files written by others: plain arrays only, nothing is ever unpickled."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

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
    with _user_errors(path), _opened(path, max_bytes) as archive:
        names = archive.namelist()
        return {key: _member(archive, key) for key in keys if f"{key}.npy" in names}


def _member(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    with archive.open(f"{key}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


class Header(NamedTuple):
    """What an array of an archive is."""

    shape: tuple[int, ...]
    in_columns: bool
    dtype: np.dtype


def read_header(path: Path, key: str) -> Header | None:
    """What an array of an archive is, without its values; None if there is none of that name.

    Raises:
        InputError: see `read_npz`.
    """
    with _user_errors(path), _opened(path) as archive:
        entry = next((e for e in archive.infolist() if e.filename == f"{key}.npy"), None)
        if entry is None:
            return None
        with archive.open(entry) as member:
            header = _header(member)
        if math.prod(header.shape) * header.dtype.itemsize > entry.file_size:
            raise ValueError(f"it is too small for an array of shape {list(header.shape)}")
        return header


def read_rows(path: Path, key: str) -> Iterator[np.ndarray]:
    """An array's items along its first axis, one at a time in memory.

    The archive's checksum is compared behind the last of them.

    Raises:
        InputError: see `read_npz`.
    """
    with _user_errors(path), _opened(path) as archive:
        with archive.open(f"{key}.npy") as member:
            shape, in_columns, dtype = _header(member)
            size = math.prod(shape[1:]) * dtype.itemsize
            for _ in range(0 if in_columns else shape[0]):
                yield np.frombuffer(member.read(size), dtype).reshape(shape[1:])
            if not in_columns and member.read(1):
                raise ValueError("it holds more than it declares")
        if in_columns:  # an item's values lie all over the array
            yield from read_npz(path, [key])[key]


@contextmanager
def _opened(path: Path, max_bytes: int = MAX_BYTES) -> Iterator[zipfile.ZipFile]:
    """An archive that does not declare more than it may."""
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
        yield archive


def _header(member: IO[bytes]) -> Header:
    """Raises ValueError for an array of Python objects, or a shape that none has."""
    versions = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(member)
    if version not in versions:
        raise ValueError(f"version {version} of NumPy's format is unknown")
    shape, in_columns, dtype = versions[version](member)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
    if any(size < 0 for size in shape):
        raise ValueError(f"the shape {shape} is impossible")
    return Header(shape, in_columns and len(shape) > 1, dtype)


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
