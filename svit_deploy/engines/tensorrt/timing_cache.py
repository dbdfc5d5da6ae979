"""What TensorRT measured in earlier builds: one file for each build, so that none misleads another.

Without it a second build takes as long as the first and may choose other kernels. TensorRT-RTX
compiles its kernels where the engine runs, times nothing, and has no use for a cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from svit_deploy.errors import SvitDeployError
from svit_deploy.io.files import cache_folder, write_file

SCHEMA_VERSION = 1

log = logging.getLogger(__name__)


def default_path(build: Mapping[str, Any]) -> Path:
    """The file of a build in the user's cache folder.

    Args:
        build: everything that the timings depend on, JSON-able: hash of the graph and of the
            plugins, settings, TensorRT's full version, GPU, driver.

    Raises:
        CapabilityError: there is no such folder.
    """
    content = json.dumps({"schema": SCHEMA_VERSION, **build}, sort_keys=True)
    key = hashlib.sha256(content.encode()).hexdigest()
    return cache_folder("timings") / f"{key}.cache"


class TimingCache:
    """One cache file, ours alone while `hold` lasts.

    A cache only saves time: whatever is wrong with it is a warning, and the build goes on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_usable = True

    @contextmanager
    def hold(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Waits until no other process builds with this file.

        Args:
            waiting: called when it has to wait.
        """
        descriptor = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = self.path.with_name(f"{self.path.name}.lock")
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
            _lock(descriptor, waiting)
        except OSError as error:
            self._warn("cannot be used", error)
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)  # lets go of the lock, as the end of the process would

    def read(self) -> bytes:
        """What an earlier build left, or nothing."""
        if not self._is_usable:
            return b""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            self._warn("cannot be read", error)
            return b""

    def reject(self) -> None:
        """Puts a file that TensorRT does not take out of the way."""
        bad = self.path.with_name(f"{self.path.name}.bad")
        log.warning(
            "timing cache %s is damaged or of another GPU; it was renamed to %s and the build "
            "goes on without",
            self.path,
            bad.name,
        )
        try:
            self.path.replace(bad)
        except OSError as error:
            self._warn("cannot be renamed", error)

    def write(self, content: bytes) -> None:
        """Keeps the timings of this build."""
        if not self._is_usable:
            return
        try:
            with write_file(self.path, "--timing-cache") as part:
                part.write_bytes(content)
        except SvitDeployError as error:
            self._warn("cannot be written", error.__cause__ or error)

    def _warn(self, what: str, error: BaseException) -> None:
        reason = getattr(error, "strerror", None) or error
        log.warning("timing cache %s %s (%s); the build goes on without", self.path, what, reason)
        self._is_usable = False


def _lock(descriptor: int, waiting: Callable[[], None]) -> None:
    """Not on Windows: two builds at once then both work, and the last one's timings stay."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
