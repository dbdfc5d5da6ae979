"""What TensorRT-RTX compiles where its engine runs: when it does, and where the result is kept.

An engine of TensorRT-RTX is made of what kernels are compiled from. By default those for a new
shape are compiled in the background, while others of any shape stand in for them: a CUDA graph
would be captured of the stand-ins, and times would drift. So they are compiled before the first
run of a shape, and kept for the next process.
"""

from __future__ import annotations

import logging
from typing import Any

from svit_deploy.engines.kept import Kept
from svit_deploy.engines.tensorrt.loading import Loaded
from svit_deploy.io.files import hash_file

_FILE = "kernels.cache"

log = logging.getLogger(__name__)


class Kernels:
    """Makes the contexts of an engine, and keeps what is compiled for them.

    See `Kept` for where, and when they are used. TensorRT-RTX checks what it reads once more. They
    only save time, so whatever is wrong with them is a log line.

    Attributes:
        found: whether an earlier process left some.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded, self.found = loaded, False
        self._config, self._cache = self._configure(), None
        self._kept = b""
        if self._config is not None:
            self._cache = self._config.create_runtime_cache()
            self._folder = Kept(loaded.path, "kernels", _made_for(loaded), loaded.cuda)
            self._read()
            self._config.set_runtime_cache(self._cache)

    def create_context(self) -> Any:
        """An execution context without activation memory of its own, if there is such; or None."""
        engine = self._loaded.engine
        if self._config is not None:
            return engine.create_execution_context(self._config)
        return engine.create_execution_context(*([self._managed] if self.memory_bytes else ()))

    @property
    def memory_bytes(self) -> int:
        """What a context needs to be given; 0 where it has its own."""
        if self._managed is None:
            return 0
        size = int(getattr(self._loaded.engine, "device_memory_size_v2", 0))
        return max(size, 0 if self._config is None else 1)  # required, it is even of nothing

    @property
    def _managed(self) -> Any:
        return self._loaded.library.member("ExecutionContextAllocationStrategy", "USER_MANAGED")

    def describe(self) -> dict[str, Any] | None:
        """For the report; None where nothing is compiled at run time."""
        return None if self._config is None else {"compiled": "eagerly", "from_cache": self.found}

    def keep(self) -> None:
        """Writes what was compiled, if it is more than there was."""
        written = None if self._cache is None else self._cache.serialize()
        if written is None or (folder := self._folder.path) is None:
            return
        if (content := bytes(written)) == self._kept:
            return
        try:
            (folder / _FILE).write_bytes(content)
            self._folder.keep()
            self._kept = content
        except OSError as error:
            log.warning("compiled kernels cannot be kept: %s", error)

    def _configure(self) -> Any | None:
        """How contexts are made; None where the library compiles nothing at run time."""
        library = self._loaded.library
        eager = library.member("DynamicShapesKernelSpecializationStrategy", "EAGER")
        if eager is None:
            return None
        config = self._loaded.engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = eager
        config.set_execution_context_allocation_strategy(self._managed)
        return config

    def _read(self) -> None:
        assert self._cache is not None
        folder = self._folder.path
        if folder is None or not (folder / _FILE).is_file():
            return
        content = (folder / _FILE).read_bytes()
        if self._cache.deserialize(content):
            self.found, self._kept = True, content
        else:
            log.warning("%s is refused by %s, kernels are compiled anew", folder / _FILE,
                        self._loaded.library.name)  # fmt: skip


def _made_for(loaded: Loaded) -> dict[str, str]:
    sidecar = loaded.sidecar
    return {
        "engine": hash_file(loaded.path) if sidecar is None else sidecar.engine_sha256,
        "tensorrt": loaded.library.version,
    }
