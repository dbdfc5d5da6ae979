"""What TensorRT's profiler is told of the layers of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from svit_deploy.engines.base import NodeTime
from svit_deploy.engines.tensorrt.inspector import nodes_in
from svit_deploy.graph.parts import BETWEEN


def make_profiler(trt: Any) -> Any:
    """An `IProfiler` that adds up what it is told: `milliseconds` by the layers' names."""

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.milliseconds: defaultdict[str, float] = defaultdict(float)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.milliseconds[layer_name] += ms

    return Profiler()


def layer_times(
    milliseconds: Mapping[str, float],
    gpu_ms: float,
    runs: int,
    told: Mapping[str, tuple[tuple[str, ...], str]],
) -> list[NodeTime]:
    """The mean of the runs that a profiler saw.

    Args:
        milliseconds: in all runs, by the layers' names.
        gpu_ms: what all runs took of the device.
        told: of the layers: `inspector.layer_nodes`.
    """
    found = [
        NodeTime(*told.get(name, (nodes_in(name), "")), ms / 1e3 / runs)
        for name, ms in milliseconds.items()
    ]
    rest = gpu_ms / 1e3 / runs - sum(one.seconds for one in found)
    return [*found, NodeTime((), BETWEEN, rest)]
