"""A detector for TensorRT: an engine up to the proposal network, and the heads in ONNX Runtime.

Behind the cut, shapes depend on what is found. Both parts are cut out of the bundle's graph, so
what is verified of it holds for them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.utils

from svit_deploy import names
from svit_deploy.engines.arrays import in_host
from svit_deploy.engines.base import Engine, RunTimes, TensorSpec, check_feeds, check_outputs
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import CapabilityError
from svit_deploy.io.onnx_file import load_onnx
from svit_deploy.tasks.detect.detections import OUTPUTS
from svit_deploy.tasks.detect.graph import IMAGE_SIZES, SCALE_FACTORS, cut_names

log = logging.getLogger(__name__)

HEADS = "heads.onnx"
_FRONT = "front.onnx"
_OWN = (IMAGE_SIZES, SCALE_FACTORS)
"""Inputs of the heads that are no results of the engine."""


@contextlib.contextmanager
def split_graph(folder: Path, graph: str) -> Iterator[Path]:
    """Writes the heads beside a detector's graph, and lends the rest to build an engine of."""
    model = load_onnx(folder / graph)
    gates = {names.KEEP_MASK, names.MARGIN, names.OVERFLOW}
    shown = [output.name for output in model.graph.output if output.name in gates]
    onnx.save(_cut(model, [*_OWN, *cut_names()], OUTPUTS), folder / HEADS)
    front = folder / _FRONT
    onnx.save(_cut(model, [names.INPUT], [*cut_names(), *shown]), front)
    yield front
    front.unlink()


def _cut(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """The part of a graph between some of its values, checked."""
    part = onnx.utils.Extractor(model).extract_model(list(inputs), list(outputs))
    part.metadata_props.extend(model.metadata_props)
    onnx.checker.check_model(part)
    return part


class SplitDetector(Engine):
    """A detector's engine and its heads as one.

    The heads run on the engine's GPU where ONNX Runtime can, and read the maps where the engine
    left them; else on the CPU, and the maps pass through host memory. `description` tells.

    Args:
        front: the engine, of images alone; closed with this one.
        heads: the ONNX file of the heads.
    """

    def __init__(self, front: Engine, heads: Path) -> None:
        self.front = front
        try:
            self.heads, self._through_host = _open_heads(heads, front.nvidia_gpu)
        except BaseException:
            front.close()
            raise
        self._kept = () if self._through_host else tuple(cut_names())
        self._ran_heads = False
        self._inputs = (*front.inputs(), *(s for s in self.heads.inputs() if s.name in _OWN))
        gates = (spec for spec in front.outputs() if spec.name not in cut_names())
        self._outputs = (*self.heads.outputs(), *gates)

    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        check_feeds(self._inputs, feeds)
        wanted = [spec.name for spec in self._outputs] if outputs is None else list(outputs)
        check_outputs(self._outputs, wanted)
        found = [name for name in wanted if name in OUTPUTS]
        front = [name for name in wanted if name not in OUTPUTS] + (cut_names() if found else [])
        seen = self.front.run_kept({names.INPUT: feeds[names.INPUT]}, front, self._kept)
        self._ran_heads = bool(found)
        if found:
            given = {name: seen.pop(name) for name in cut_names()}
            given |= {name: feeds[name] for name in _OWN}
            seen |= self.heads.run_kept(given, found)
        return in_host({name: seen[name] for name in wanted})

    def close(self) -> None:
        self.front.close()
        self.heads.close()

    @property
    def description(self) -> dict[str, Any]:
        about = self.front.description | {"heads": self.heads.description}
        return about | {"maps_through_host": self._through_host}

    @property
    def last_times(self) -> RunTimes | None:
        """Of both parts; the engine's alone where the heads ran on the CPU, or not at all."""
        front, heads = self.front.last_times, self.heads.last_times if self._ran_heads else None
        return front if front is None or heads is None else front.then(heads)

    @property
    def nvidia_gpu(self) -> int | None:
        return self.front.nvidia_gpu


def _open_heads(path: Path, gpu: int | None) -> tuple[Engine, str | None]:
    """The heads, and why they do not share the memory of a GPU with the engine, if they do not."""
    reason = "the engine runs on no NVIDIA GPU"
    if gpu is not None:
        try:
            return OnnxRuntimeEngine(path, provider="cuda", device=gpu), None
        except CapabilityError as error:
            reason = f"the heads run on the CPU, {error.message}"
            log.warning("the detector's heads run on the CPU: %s", error.message)
    return OnnxRuntimeEngine(path, provider="cpu"), reason
