"""What a slot runs: a runtime's program on a stream, and what it needs for one set of shapes."""

from __future__ import annotations

import abc
from collections.abc import Mapping

import numpy as np

from svit_deploy.engines.base import TensorSpec

Shapes = Mapping[str, tuple[int, ...]]


class Binding(abc.ABC):
    """What serves inputs of one set of shapes, in the memory that it is told.

    Attributes:
        profile: number of the optimisation profile, where there are any.
        shapes: of the outputs; None where only a run tells.
        data_dependent: outputs whose size only the device knows, for good.
        ready: whether the last run used the memory that the next one will, so that it can be
            captured.
        captured: whether a CUDA graph of it was recorded, in the memory that it has now.
    """

    profile: int | None = None
    shapes: dict[str, tuple[int, ...] | None]
    data_dependent: tuple[str, ...] = ()
    ready: bool = True

    @property
    @abc.abstractmethod
    def captured(self) -> bool: ...

    @abc.abstractmethod
    def bind(self, addresses: Mapping[str, int], in_host: Mapping[str, np.ndarray]) -> None:
        """Says where inputs, and outputs of known size, are.

        Args:
            addresses: on the device.
            in_host: the inputs that the program reads in host memory.
        """

    @abc.abstractmethod
    def enqueue(self) -> None:
        """Puts a run on the stream; raises a SvitDeployError where that fails."""

    @abc.abstractmethod
    def output(self, name: str) -> tuple[int, tuple[int, ...]]:
        """Address and shape of an output of the last run."""

    def is_capturable(self) -> bool:
        """What the library says of a capture, where it can tell; else True: try."""
        return True

    @abc.abstractmethod
    def capture(self) -> None:
        """Records a run; raises a SvitDeployError where it cannot be recorded."""

    @abc.abstractmethod
    def launch(self) -> None:
        """Puts the recorded run on the stream."""

    @abc.abstractmethod
    def close(self) -> None: ...


class Program(abc.ABC):
    """A model on one stream, which outlives it.

    Attributes:
        inputs, outputs: its tensors, in order.
        host_inputs: names of inputs that it reads in host memory.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    host_inputs: frozenset[str] = frozenset()

    @abc.abstractmethod
    def binding(self, shapes: Shapes) -> Binding:
        """What serves inputs of these shapes; raises a SvitDeployError where nothing does."""

    @abc.abstractmethod
    def close(self) -> None:
        """Frees what it holds, after its bindings."""
