"""The execution contexts of an engine on one stream, and the profile that each is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from svit_deploy.engines.base import TensorSpec
from svit_deploy.engines.device.binding import Program, Shapes
from svit_deploy.engines.device.cuda import Buffer, Stream
from svit_deploy.engines.tensorrt.binding import Context
from svit_deploy.engines.tensorrt.kernels import Kernels
from svit_deploy.engines.tensorrt.loading import Loaded
from svit_deploy.errors import InputError
from svit_deploy.model.profiles import Profile, Shape, choose_profile


class Contexts(Program):
    """Makes a context for each shape; they run one after another and share their activations.

    Args:
        profiler: an `IProfiler` that is told the time of each layer.
    """

    def __init__(
        self,
        loaded: Loaded,
        kernels: Kernels,
        stream: Stream,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        profiles: Sequence[Profile],
        profiler: Any = None,
    ) -> None:
        self._loaded, self._kernels, self._stream = loaded, kernels, stream
        self.inputs, self.outputs, self._profiles = inputs, outputs, profiles
        self._memory, self._profiler = Buffer(loaded.cuda), profiler

    def binding(self, shapes: Shapes) -> Context:
        ((name, (batch, channels, height, width)),) = shapes.items()
        shape = (batch, channels, height, width)
        profile = choose_profile(self._profiles, shape)
        if profile is None:
            raise _outside(self._profiles, shape)
        made = Context(
            self._loaded,
            self._kernels,
            self._stream,
            self._memory,
            profile,
            name,
            shape,
            tuple(spec.name for spec in self.outputs),
        )
        if self._profiler is not None:
            made.tell(self._profiler)
        return made

    def close(self) -> None:
        self._memory.close()


def _outside(profiles: Sequence[Profile], shape: Shape) -> InputError:
    """The error for a shape that no profile serves."""

    def distance(profile: Profile) -> int:
        sizes = zip(profile.min, shape, profile.max, strict=True)
        return sum(max(low - size, 0, size - high) for low, size, high in sizes)

    nearest = min(range(len(profiles)), key=lambda number: distance(profiles[number]))
    served = ", ".join(f"{profile} (profile {i})" for i, profile in enumerate(profiles))
    return InputError(
        f"the engine does not serve the shape {'x'.join(map(str, shape))}, only {served}; nearest "
        f"is profile {nearest}",
        "feed a shape within it, or build the engine with profiles that hold this one",
    )
