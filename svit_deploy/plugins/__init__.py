"""The TensorRT plugin library "gather and scatter": where the one that was built here is.

The library is compiled on the user's machine (`build.py`), against the user's TensorRT headers;
this package brings only its source. Plugins are found by name, `VERSION` and `NAMESPACE`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from svit_deploy.errors import CapabilityError
from svit_deploy.io.files import cache_folder, hash_file

NAMESPACE = "svit"
VERSION = "1"
NAMES = ("SvitCompact", "SvitGather", "SvitScatter")

LIBRARY = "libsvit_trt.so"
"""For programs that are told to load a plugin library: trtexec, `registry.load_library`."""
AUTOREGISTER = "libsvit_trt_autoreg.so"
"""Beside it, for programs that only load it: LD_PRELOAD, ONNX Runtime, Triton."""
RECORD = "build.json"
"""Beside them: what they were built from and with."""

SOURCE = Path(__file__).parent / "source"
BUILD = "run svit-deploy plugins build --tensorrt-include DIR"


def default_folder() -> Path:
    """Where `plugins build` puts the libraries, and where they are looked for."""
    return cache_folder("plugins")


def library_path() -> Path:
    """The plugin library that was built from the source of this package.

    Raises:
        CapabilityError: it was not built yet, or from the source of another release.
    """
    folder = default_folder()
    library = folder / LIBRARY
    if not library.is_file():
        raise CapabilityError(f"no TensorRT plugin library in {folder}", BUILD)
    if recorded_source(folder) != source_sha256():
        raise CapabilityError(
            f"{library} was built from the source of another release", f"{BUILD} again"
        )
    return library.absolute()


def library_sha256(path: Path) -> str:
    """sha256 of a library, hexadecimal: what an engine that needs it can be tied to."""
    return hash_file(path)


def source_sha256() -> str:
    """sha256 over the names and contents of the source files, hexadecimal."""
    digest = hashlib.sha256()
    for file in sorted(SOURCE.iterdir()):
        digest.update(f"{file.name}\0{hash_file(file)}\0".encode())
    return digest.hexdigest()


def recorded_source(folder: Path) -> str | None:
    """The source that the libraries in a folder were built from, or None without a record."""
    try:
        return str(json.loads((folder / RECORD).read_text(encoding="utf-8"))["source_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
