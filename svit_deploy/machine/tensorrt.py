"""TensorRT 10, TensorRT 11 and TensorRT-RTX behind one lookup: members by name, never by number.

Enum values were renumbered between 10 and 11, and each release adds and removes names. So this
package asks for a name and lives with its absence; versions only tell which is too old.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from typing import Any

from svit_deploy.errors import CapabilityError, UsageError
from svit_deploy.machine.environment import release

ENTERPRISE, RTX = "tensorrt", "tensorrt-rtx"
TARGETS = {ENTERPRISE: "tensorrt", RTX: "tensorrt_rtx"}
INSTALL = {
    ENTERPRISE: "run: pip install 'svit-deploy[tensorrt]'; on a Jetson 'svit-deploy[jetson]' in an "
    "environment with --system-site-packages, for JetPack brings TensorRT",
    RTX: "run: pip install 'svit-deploy[tensorrt-rtx]'",
}
NAMES = {ENTERPRISE: "TensorRT", RTX: "TensorRT-RTX"}
OLDEST = "10.3"
"""The first TensorRT that works; so does every TensorRT-RTX."""


@dataclass(frozen=True)
class Library:
    """An imported TensorRT.

    Attributes:
        target: `tensorrt` or `tensorrt-rtx`.
        trt: the Python module.
    """

    target: str
    trt: Any

    @property
    def version(self) -> str:
        """As the module tells it, for example 10.16.1.11."""
        return str(self.trt.__version__)

    @property
    def name(self) -> str:
        """For messages, for example TensorRT 10.16.1.11."""
        return f"{NAMES[self.target]} {self.version}"

    @property
    def short_version(self) -> str:
        """Major and minor version, for file names: `trt10.16`, `rtx1.7`."""
        prefix = "trt" if self.target == ENTERPRISE else "rtx"
        return prefix + ".".join(self.version.split(".")[:2])

    def member(self, enum: str, name: str) -> Any | None:
        """A member of an enum, or None where this release lacks it."""
        return getattr(getattr(self.trt, enum, None), name, None)

    def bit(self, enum: str, name: str) -> int:
        """The flag bit of an enum's member, 0 where this release lacks it."""
        member = self.member(enum, name)
        return 0 if member is None else 1 << int(member)


def require_library(target: str) -> None:
    """Raises CapabilityError where a target's library is not installed; imports nothing."""
    module = TARGETS[target]
    if module not in sys.modules and importlib.util.find_spec(module) is None:
        raise CapabilityError(
            f"{module} cannot be imported: no module of that name", INSTALL[target]
        )


def load_library(target: str) -> Library:
    """Imports the library of a target.

    Raises:
        UsageError: an unknown target.
        CapabilityError: it is not installed, broken, or too old.
    """
    if target not in TARGETS:
        raise UsageError(f"target {target!r} is unknown", f"use one of {', '.join(TARGETS)}")
    try:
        library = Library(target, importlib.import_module(TARGETS[target]))
        version = library.version
    except (ImportError, OSError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CapabilityError(
            f"{TARGETS[target]} cannot be imported: {reason}", INSTALL[target]
        ) from error
    if is_too_old(target, version):
        raise CapabilityError(
            f"TensorRT {version} is too old, {OLDEST} is the first that works", "upgrade TensorRT"
        )
    return library


def is_too_old(target: str, version: str) -> bool:
    """Whether a library is older than `OLDEST`; one that does not tell its version is not."""
    return target == ENTERPRISE and () < release(version) < release(OLDEST)


def one_line(text: str, limit: int = 300) -> str:
    """A message of TensorRT without line breaks and places in its source code."""
    place = r"(?:In \S+ )?at \S+:\d+"
    text = re.sub(rf"\s*(?:\({place}\)|\b{place})", "", " ".join(text.split()))
    text = re.sub(r"^(?:\S+\.cpp:\d+: ?|Assertion failed: .+?: )", "", text).rstrip(". ")
    return text if len(text) <= limit else text[: limit - 3] + "..."
