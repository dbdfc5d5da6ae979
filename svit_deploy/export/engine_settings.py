"""How to build an engine, and for which shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from svit_deploy.errors import UsageError
from svit_deploy.model.profiles import Profile, shape_profiles
from svit_deploy.options import option

GRAPH_ONLY = "onnx"
"""The target that builds no engine."""
_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_bytes(text: str, flag: str) -> int:
    """Reads `4GiB`, `512MiB` or a number of bytes.

    Raises:
        UsageError: anything else.
    """
    found = re.fullmatch(r"([0-9]{1,15})\s*(KiB|MiB|GiB|)", text.strip())
    if not found:
        raise UsageError(f"{flag} {text!r} is no size", f"write, e.g., {flag} 4GiB")
    return int(found[1]) * _UNITS[found[2]]


def _targets() -> Iterable[str]:
    from svit_deploy.machine.tensorrt import TARGETS

    return (GRAPH_ONLY, *TARGETS)


@dataclass(frozen=True)
class EngineOptions:
    """How to build an engine.

    Attributes:
        target: `tensorrt` or `tensorrt-rtx`.
        optimization_level: of the builder, 0 to 5; its default if None.
        workspace_bytes: most scratch memory a layer may use; TensorRT's default if 0.
        timing_cache: file; None for one in the user's cache folder, "none" for no cache.
        plugin_library: for a graph with plugin nodes; None for the one that `svit-deploy plugins
            build` made, "none" to build from the nodes' function bodies.
        device: number of the GPU to build on.
    """

    target: str
    optimization_level: int | None = None
    workspace_bytes: int = 0
    timing_cache: str | None = None
    plugin_library: str | None = None
    device: int = 0

    def __post_init__(self) -> None:
        from svit_deploy.machine.tensorrt import TARGETS

        if self.target not in TARGETS:
            raise UsageError(
                f"--target {self.target!r} is unknown", f"use onnx, {', '.join(TARGETS)}"
            )
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(
                f"--opt-level {self.optimization_level} is out of range", "give 0 to 5"
            )


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Whether to build an engine, and how.

    Attributes:
        min_shapes, opt_shapes, max_shapes: one of each for every optimisation profile, instead of
            batch sizes at the model's image size.
        workspace: in bytes.
    """

    target: str = option(
        GRAPH_ONLY,
        "What to build: onnx, tensorrt or tensorrt-rtx.",
        metavar="NAME",
        choices=_targets,
    )
    min_shapes: tuple[str, ...] = option(
        (),
        "Smallest input shape, as for trtexec; once per profile.",
        metavar="images:BxCxHxW",
        many=True,
    )
    opt_shapes: tuple[str, ...] = option(
        (),
        "Typical input shape, as for trtexec; once per profile.",
        metavar="images:BxCxHxW",
        many=True,
    )
    max_shapes: tuple[str, ...] = option(
        (),
        "Largest input shape, as for trtexec; once per profile.",
        metavar="images:BxCxHxW",
        many=True,
    )
    plugin_library: str | None = option(
        None,
        "Plugin library to build with, or none. By default the one that `plugins build` made.",
        metavar="FILE",
    )
    workspace: int | None = option(
        None,
        "Workspace limit of the engine builder, for example 4GiB.",
        metavar="SIZE",
        parse=parse_bytes,
    )
    optimization_level: int | None = option(
        None,
        "Optimisation level of the engine builder, 0 to 5.",
        flag="--opt-level",
        metavar="N",
        kind=int,
    )
    timing_cache: str | None = option(
        None,
        "Timing cache of the engine builder, or none. By default one in your cache folder.",
        metavar="FILE",
    )
    device: int = option(0, "GPU to build the engine on.", metavar="N", low=0)

    @property
    def engine(self) -> EngineOptions | None:
        """The engine to build; None for an ONNX file alone.

        Raises:
            UsageError: an option of an engine without one, or a value that cannot work.
        """
        if self.target != GRAPH_ONLY:
            return EngineOptions(
                self.target,
                self.optimization_level,
                self.workspace or 0,
                self.timing_cache,
                self.plugin_library,
                self.device,
            )
        options = {
            "--opt-level": self.optimization_level,
            "--workspace": self.workspace,
            "--timing-cache": self.timing_cache,
            "--plugin-library": self.plugin_library,
            "--device": self.device or None,
        }
        if given := [name for name, value in options.items() if value is not None]:
            from svit_deploy.machine.tensorrt import TARGETS

            raise UsageError(
                f"{given[0]} has no meaning without an engine",
                f"add --target {' or '.join(TARGETS)}, or leave it out",
            )
        return None

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The shapes that an engine must serve, if they are given; see `shape_profiles`."""
        return shape_profiles(self.min_shapes, self.opt_shapes, self.max_shapes)
