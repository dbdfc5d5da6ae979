"""The runner contract: what `verify` and `bench` know about a backend."""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from svit_deploy.engines.arrays import Feed, in_host
from svit_deploy.errors import InputError
from svit_deploy.model.profiles import Profile

EngineT = TypeVar("EngineT", bound="Engine")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph; a dimension is a size, or a name where it is free."""

    name: str
    dtype: np.dtype
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class RunTimes:
    """Where the time of one run on a GPU went.

    Attributes:
        gpu_ms: on the device, from the first kernel that could start to the end of the last; it
            holds the waits for a host that enqueues too slowly.
        h2d_ms, d2h_ms: copies from and to the host.
        enqueue_ms: what the host needed to enqueue the work, or to launch the CUDA graph.
        graph: whether it was a CUDA graph.
        profile: the optimisation profile that served it, where there are any.
    """

    gpu_ms: float
    h2d_ms: float
    d2h_ms: float
    enqueue_ms: float
    graph: bool
    profile: int | None

    def then(self, later: RunTimes) -> RunTimes:
        """With one that followed it; graph and profile stay this one's."""
        return RunTimes(
            gpu_ms=self.gpu_ms + later.gpu_ms,
            h2d_ms=self.h2d_ms + later.h2d_ms,
            d2h_ms=self.d2h_ms + later.d2h_ms,
            enqueue_ms=self.enqueue_ms + later.enqueue_ms,
            graph=self.graph,
            profile=self.profile,
        )


@dataclass(frozen=True)
class NodeTime:
    """What a run spends on an operator.

    Attributes:
        nodes: names of the graph's nodes that it stands for: several where the runtime fused
            them, none where it is the runtime's own.
        operator: its type, as the runtime calls it; `graph.parts.BETWEEN` for what a run takes
            beside its operators.
        seconds: on average.
    """

    nodes: tuple[str, ...]
    operator: str
    seconds: float


@dataclass(frozen=True)
class Flight:
    """Runs of which several were under way at a time.

    Attributes:
        in_flight: how many.
        runs: how many in all.
        seconds: from the first array handed over to the last one given back.
        device_ms: of a run on the device, transfers included: from the start of the first to the
            end of the last, over the runs. The device does not wait for the host in between.
    """

    in_flight: int
    runs: int
    seconds: float
    device_ms: float


class Engine(abc.ABC):
    """A loaded model that turns named arrays into named arrays.

    The constructor loads; `close` frees. Use it as a context manager. Arrays go in and come out
    in host memory, so the time of `run` is host to host.

    Attributes:
        profiles: shapes that it was built for; none where it takes what its inputs say.
    """

    profiles: tuple[Profile, ...] = ()

    @abc.abstractmethod
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The graph's inputs, in its order."""

    @abc.abstractmethod
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph's outputs, in its order."""

    @abc.abstractmethod
    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Runs the model once.

        Args:
            feeds: one array for every input.
            outputs: names of the outputs wanted; all of them by default.

        Raises:
            InputError: the feeds do not fit the graph, or the graph failed on them.
            CapabilityError: the machine ran out of memory.
        """

    def run_kept(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str] | None = None,
        kept: Collection[str] = (),
    ) -> dict[str, Feed]:
        """As `run`, between engines on one `nvidia_gpu`: arrays need not leave the device.

        Args:
            feeds: arrays in host memory, or what another engine left on the device.
            kept: outputs to leave on the device, as far as the engine can.
        """
        return dict(self.run(in_host(feeds), outputs))

    def fly(
        self,
        feeds: Sequence[Mapping[str, np.ndarray]],
        outputs: Sequence[str] | None,
        runs: int,
        in_flight: int,
    ) -> Flight | None:
        """Runs several batches at a time, for throughput; None where an engine does not.

        Args:
            feeds: batches to run in turn.
            outputs: as for `run`.
            runs: how many runs to time.
            in_flight: how many at a time.

        Raises:
            SvitDeployError: as `run`.
        """
        return None

    def profile(
        self, feeds: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[str] | None
    ) -> list[NodeTime] | None:
        """Runs batches under the runtime's profiler, apart from the runs of `run`.

        Args:
            feeds: batches to run, one after the other; the first one also warms up.
            outputs: as for `run`.

        Returns:
            What an average run spends on each operator: together the time of that run. None where
            an engine cannot tell.

        Raises:
            SvitDeployError: as `run`.
        """
        return None

    @abc.abstractmethod
    def close(self) -> None:
        """Frees the model; closing twice is fine, running afterwards is not."""

    @property
    @abc.abstractmethod
    def description(self) -> dict[str, Any]:
        """What runs the model, JSON-able: runtime, version, provider, threads."""

    @property
    def last_times(self) -> RunTimes | None:
        """Where the time of the last run went, if the runtime can tell."""
        return None

    @property
    def nvidia_gpu(self) -> int | None:
        """Number of the NVIDIA GPU that it runs on, and whose memory it is fed from, if any."""
        return None

    def __enter__(self: EngineT) -> EngineT:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Wrapped(Engine):
    """An engine around another; a subclass says what it does to a run, and to what is fed."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.engine.inputs()

    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.engine.outputs()

    def close(self) -> None:
        self.engine.close()

    @property
    def description(self) -> dict[str, Any]:
        return self.engine.description

    @property
    def last_times(self) -> RunTimes | None:
        return self.engine.last_times

    @property
    def nvidia_gpu(self) -> int | None:
        return self.engine.nvidia_gpu


def check_feeds(specs: Sequence[TensorSpec], feeds: Mapping[str, Feed]) -> None:
    """Checks names, types, ranks and fixed sizes before native code sees the arrays.

    Raises:
        InputError: naming the input, what it got and what it takes.
    """
    if len(feeds) != len(specs) or any(spec.name not in feeds for spec in specs):
        known = [spec.name for spec in specs]
        for name in feeds:
            if name not in known:
                raise InputError(f"the model has no input {name!r}", f"feed {_listed(known)}")
        missing = [name for name in known if name not in feeds]
        raise InputError(f"no array was fed for {_listed(missing)}", f"feed {_listed(known)}")
    for spec in specs:
        array = feeds[spec.name]
        if array.dtype != spec.dtype:
            raise InputError(
                f"input {spec.name!r} is {array.dtype}, the model takes {spec.dtype}",
                f"convert the array to {spec.dtype} before the run",
            )
        if len(array.shape) != len(spec.shape) or any(
            isinstance(wanted, int) and wanted != size
            for wanted, size in zip(spec.shape, array.shape, strict=True)
        ):
            raise InputError(
                f"input {spec.name!r} has shape {_shape(array.shape)}, "
                f"the model takes {_shape(spec.shape)}",
                "feed that shape, or export the model with the batch and image size you need",
            )


def check_outputs(specs: Sequence[TensorSpec], names: Sequence[str]) -> None:
    """Raises InputError for a wanted output that the graph does not have."""
    known = [spec.name for spec in specs]
    for name in names:
        if name not in known:
            raise InputError(f"the model has no output {name!r}", f"ask for {_listed(known)}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _shape(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"
