"""NVIDIA's providers of ONNX Runtime on memory and a stream of ours, with CUDA's own CUDA graphs.

Source: onnxruntime/transformers/io_binding_helper.py of the package combines the same options; a
stream of the user's is that of the other two by tensorrt_provider_options.h and, in the package of
nv-tensorrt-rtx, tensorrt_rtx_provider_options.h. With it they no longer wait for each run, unless
part of the graph is left to others.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from svit_deploy.engines.base import TensorSpec
from svit_deploy.engines.device.binding import Binding, Program, Shapes
from svit_deploy.engines.device.cuda import Stream
from svit_deploy.engines.device.graphs import CudaGraphs
from svit_deploy.engines.onnxruntime_session import Sessions
from svit_deploy.engines.provider_choice import STREAM
from svit_deploy.engines.providers import CUDA
from svit_deploy.errors import SvitDeployError

_NO_GRAPH = -1
"""Number of a graph that is neither recorded nor replayed."""
_GPU, _IN_HOST = "cuda", "Cpu"
"""What memory is called: of any of the providers that of an NVIDIA GPU, and the host's."""
_REFUSED = "graph capture"
"""In what a session says where not all of its nodes can be recorded."""


class DeviceSession(Program):
    """A session whose work goes to one stream.

    Args:
        stream: it must outlive the session, which goes on to use it.
        waits: why the host must wait in the middle of a run, if sizes depend on the data.

    Raises:
        SvitDeployError: no session, or no CUDA graphs where they were asked for.
    """

    def __init__(
        self, sessions: Sessions, stream: Stream, graphs: CudaGraphs, waits: str | None
    ) -> None:
        self.sessions, self.stream, self._static = sessions, stream, waits is None
        if waits is not None:
            graphs.forbid(waits)
        elif sessions.provider != CUDA:
            graphs.forbid(f"none of {sessions.provider} are recorded here")
        own = dict(zip(STREAM, (str(stream.handle), "1"), strict=True))
        self.session: Any = None
        if graphs.reason is None:
            try:
                self.session = sessions.open(own | {"enable_cuda_graph": "1"})
            except SvitDeployError as error:
                if _REFUSED not in error.message:
                    raise
                graphs.forbid(error.message)
        if self.session is None:
            self.session = sessions.open(own)
        self.inputs = tuple(sessions.spec(node) for node in self.session.get_inputs())
        self.outputs = tuple(sessions.spec(node) for node in self.session.get_outputs())
        self.host_inputs = frozenset(_read_in_host(self.session))
        if self.host_inputs:
            graphs.forbid(f"{', '.join(sorted(self.host_inputs))} is read in host memory")
        self._numbers = itertools.count(1)

    def binding(self, shapes: Shapes) -> Binding:
        return _Bound(self, shapes)

    def run(self, bound: Any, graph: int) -> None:
        """Puts a run on the stream.

        Args:
            bound: ONNX Runtime's IOBinding.
            graph: number of the graph to record or to replay.
        """
        options = self.sessions.ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph))
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        try:
            self.session.run_with_iobinding(bound, options)
        except Exception as error:  # ONNX Runtime's exceptions share no narrower class
            raise self.sessions.run_failure(error) from error

    def new_graph(self) -> int:
        """A number that no graph of the session has had."""
        return next(self._numbers)

    def release(self, graph: int) -> None:
        """Frees a recorded graph, where ONNX Runtime can; else it stays as long as the session."""
        getattr(self.session, "release_captured_graph", lambda number: None)(graph)

    def close(self) -> None:
        self.session = None

    def fixed(self, output: TensorSpec) -> bool:
        """Whether the shapes of the inputs decide an output's."""
        known = {size for spec in self.inputs for size in spec.shape if size != "?"}
        return self._static or all(isinstance(size, int) or size in known for size in output.shape)


def _read_in_host(session: Any) -> list[str]:
    """Inputs that nodes on the CPU read; all of them where ONNX Runtime is too old to tell.

    Bound on the device they would be copied at once, before the stream has filled them.
    """
    names = [node.name for node in session.get_inputs()]
    ask = getattr(session, "get_input_memory_infos", None)
    if ask is None:
        return names
    return [name for name, place in zip(names, ask(), strict=True) if place.name == _IN_HOST]


class _Bound(Binding):
    """Memory for one set of shapes. The first run tells those of the outputs."""

    def __init__(self, program: DeviceSession, shapes: Shapes) -> None:
        self._program, self._inputs = program, dict(shapes)
        self._bound = program.session.io_binding()
        self._types = {spec.name: spec.dtype for spec in program.inputs + program.outputs}
        self._addresses: dict[str, int] = {}
        self._found: dict[str, Any] = {}
        self._graph: int | None = None
        self.shapes = {spec.name: None for spec in program.outputs}

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def bind(self, addresses: Mapping[str, int], in_host: Mapping[str, np.ndarray]) -> None:
        for name, array in in_host.items():
            self._bound.bind_cpu_input(name, np.ascontiguousarray(array))
        number = self._program.sessions.device
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                self._drop_graph()
                is_input = name in self._inputs
                bind = self._bound.bind_input if is_input else self._bound.bind_output
                shape = self._inputs[name] if is_input else self.shapes[name]
                bind(name, _GPU, number, self._types[name], shape, address)
                self._addresses[name] = address
        for name, known in self.shapes.items():
            if known is None:  # each time anew, or the last run's array would be the next one's
                self._bound.bind_output(name, _GPU, number)
        self.ready = None not in self.shapes.values()

    def enqueue(self) -> None:
        self._program.run(self._bound, _NO_GRAPH)
        found = zip(self._program.outputs, self._bound.get_outputs(), strict=True)
        self._found = {spec.name: value for spec, value in found}
        for spec in self._program.outputs:
            if self.shapes[spec.name] is None and self._program.fixed(spec):
                self.shapes[spec.name] = tuple(self._found[spec.name].shape())

    def output(self, name: str) -> tuple[int, tuple[int, ...]]:
        shape = self.shapes[name]
        if shape is not None and name in self._addresses:
            return self._addresses[name], shape
        value = self._found[name]
        return value.data_ptr(), tuple(value.shape())

    def capture(self) -> None:
        number = self._program.new_graph()
        try:  # it runs plainly, then records, then replays
            self._program.run(self._bound, number)
            self._program.stream.synchronize()
        except SvitDeployError:
            self._program.stream.stop_capture()
            raise
        self._graph = number

    def launch(self) -> None:
        assert self._graph is not None
        self._program.run(self._bound, self._graph)

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._program.release(self._graph)
        self._graph = None

    def close(self) -> None:
        self._drop_graph()
        self._bound, self._found = None, {}
