"""TensorRT-RTX's library under the name that its plugin system looks for.

The wheel has it under its versioned name only. A process that adds a plugin, or loads an engine
with one, then ends without a word; and what is looked up is where LD_LIBRARY_PATH pointed when the
process began.
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

from svit_deploy.errors import CapabilityError
from svit_deploy.io.files import cache_folder

_NAME = "libtensorrt_rtx.so"


def link_libraries(folder: Path) -> Path:
    """Makes a folder with a link to each of the wheel's libraries by its short name."""
    folder.mkdir(parents=True, exist_ok=True)
    found = importlib.util.find_spec("tensorrt_rtx_libs")
    for place in (found.submodule_search_locations or []) if found else []:
        for file in Path(place).glob("lib*.so.*"):
            link = folder / f"{file.name.partition('.so.')[0]}.so"
            link.unlink(missing_ok=True)
            link.symlink_to(file)
    return folder


def require_short_name() -> None:
    """Raises CapabilityError where this process would not find the library by its short name."""
    try:
        ctypes.CDLL(_NAME)
    except OSError:
        folder = link_libraries(cache_folder("tensorrt-rtx"))
        raise CapabilityError(
            f"an engine with plugins needs TensorRT-RTX's library by the name {_NAME}",
            f"start again with LD_LIBRARY_PATH={folder}, which has that link now",
        ) from None
