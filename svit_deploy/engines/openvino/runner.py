"""OpenVINO behind the runner contract: a device by its name, one precision, no silent fallback."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from svit_deploy.engines.base import Engine, NodeTime, TensorSpec, check_feeds, check_outputs
from svit_deploy.engines.openvino.counters import WARM_UP, Counters, original_nodes
from svit_deploy.engines.openvino.library import (
    check_precision,
    find_device,
    import_openvino,
    one_line,
)
from svit_deploy.engines.openvino.precision import keep_float32
from svit_deploy.engines.openvino.reading import read_graph
from svit_deploy.engines.settings import PRECISIONS
from svit_deploy.errors import CapabilityError, InputError, SvitDeployError
from svit_deploy.io.files import cache_folder, reading

log = logging.getLogger(__name__)

CACHE_VERSION = 1
"""Raised when this package prepares a model otherwise."""
_OUT_OF_MEMORY = re.compile(r"bad_alloc|out of memory|failed to allocate", re.IGNORECASE)


class OpenVinoEngine(Engine):
    """An ONNX model compiled by OpenVINO for one device.

    In half precision, what decides stays in float32 (`precision.keep_float32`). What OpenVINO makes
    of a file is kept in the user's cache folder.

    Args:
        model: an .onnx file, or its bytes.
        precision: of the computation: fp32, fp16 or bf16.
        device: CPU, GPU or NPU; or one of several, as in GPU.1.
        threads: of the CPU; 0 is OpenVINO's default, one per physical core.
        counting: measure each operator, which takes time.

    Raises:
        InputError: the file is missing, broken, or no model that OpenVINO can run.
        CapabilityError: OpenVINO or the device is missing, or the device lacks the precision.
        UsageError: an unknown device.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        precision: str = "fp32",
        device: str = "CPU",
        threads: int = 0,
        counting: bool = False,
    ) -> None:
        again: dict[str, Any] = {
            "precision": precision,
            "device": device,
            "threads": threads,
            "counting": True,
        }
        self._again = partial(OpenVinoEngine, model, **again) if isinstance(model, Path) else None
        self._name, content = _content(model)
        openvino = import_openvino()
        core = openvino.Core()
        device = find_device(core, device)
        check_precision(core, device, precision)
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        if device == "CPU" and threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        if counting:  # what the cache has was compiled without
            settings["PERF_COUNT"] = True
        elif isinstance(model, Path):
            settings |= _cache(content, core, device, settings, openvino.__version__)
        graph = self._read(openvino, content)
        # Of a compiled model, outputs may have lost their names.
        results = [result.get_friendly_name() for result in graph.get_results()]
        fed: dict[str, np.ndarray] = {}
        if precision != "fp32":
            graph, fed = keep_float32(openvino, core, graph)
        try:
            compiled = core.compile_model(graph, device, settings)
            self._request = compiled.create_infer_request()
            self._compiled = compiled
        except Exception as error:  # OpenVINO's exceptions share no narrower class
            raise self._failure(f"could not be compiled for {device}", error) from error
        parameters = [parameter.get_friendly_name() for parameter in graph.get_parameters()]
        for name, array in fed.items():
            port = compiled.input(parameters.index(name))
            self._request.set_tensor(port, openvino.Tensor(array))
        self._inputs = tuple(
            _spec(name, port)
            for name, port in zip(parameters, compiled.inputs, strict=True)
            if name not in fed
        )
        self._outputs = tuple(
            _spec(name.removesuffix("/sink_port_0"), port)
            for name, port in zip(results, compiled.outputs, strict=True)
        )
        self._description = {
            "runtime": "openvino",
            "version": openvino.__version__,
            "device": device,
            "device_name": core.get_property(device, "FULL_DEVICE_NAME"),
            "precision": precision,
            "threads": threads,
            "from_cache": bool(compiled.get_property("LOADED_FROM_CACHE")),
        }

    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def description(self) -> dict[str, Any]:
        return dict(self._description)

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        if self._request is None:
            raise RuntimeError("the engine is closed")
        check_feeds(self._inputs, feeds)
        known = [spec.name for spec in self._outputs]
        names = known if outputs is None else list(outputs)
        check_outputs(self._outputs, names)
        given = {
            number: np.asarray(feeds[spec.name], order="C")
            for number, spec in enumerate(self._inputs)
        }
        try:
            self._request.infer(given, share_inputs=True)
        except Exception as error:  # as above
            raise self._failure("failed while running", error) from error
        # Copies: the next run writes over the request's own tensors.
        return {
            name: np.array(self._request.get_output_tensor(known.index(name)).data)
            for name in names
        }

    def profile(
        self, feeds: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[str] | None
    ) -> list[NodeTime] | None:
        if self._again is None:
            return None
        with self._again() as engine:
            for feed in [feeds[0]] * WARM_UP:
                engine.run(feed, outputs)
            before = Counters(engine._request, WARM_UP)
            seconds = sum(engine._seconds(feed) for feed in feeds)
            after = Counters(engine._request, WARM_UP + len(feeds))
            return after.since(before, seconds, original_nodes(engine._compiled))

    def _seconds(self, feed: Mapping[str, np.ndarray]) -> float:
        start = time.perf_counter()
        self.run(feed, ())
        return time.perf_counter() - start

    def close(self) -> None:
        self._request = self._compiled = None

    def _read(self, openvino: ModuleType, content: bytes) -> Any:
        try:
            graph = read_graph(openvino, content)
        except Exception as error:  # as above
            raise self._failure("could not be read", error) from error
        if not graph.get_results():
            raise InputError(f"{self._name} has no outputs", "check that the file is complete")
        return graph

    def _failure(self, what: str, error: Exception) -> SvitDeployError:
        reason = one_line(str(error))
        if _OUT_OF_MEMORY.search(str(error)):
            return CapabilityError(
                f"{self._name} {what}, out of memory: {reason}", "lower the batch size"
            )
        return InputError(
            f"{self._name} {what} by OpenVINO: {reason}",
            "use --engine onnxruntime, or check that the file is complete",
        )


def _content(model: Path | bytes) -> tuple[str, bytes]:
    """What errors call a model, and its bytes."""
    if isinstance(model, bytes):
        return "the model", model
    if not model.is_file():
        raise InputError(f"{model} is not a file", "give the path of an .onnx file")
    with reading(model):
        return str(model), model.read_bytes()


def _spec(name: str, port: Any) -> TensorSpec:
    shape = tuple("?" if size.is_dynamic else size.get_length() for size in port.partial_shape)
    return TensorSpec(name, np.dtype(port.get_element_type().to_dtype()), shape)


def _cache(
    content: bytes, core: Any, device: str, settings: Mapping[str, Any], version: str
) -> dict[str, str]:
    """The setting that makes OpenVINO keep and find what it compiles; nothing where it cannot.

    Each way to compile a file has a folder of its own: OpenVINO itself takes what was compiled in
    one precision for any other.
    """
    made_of = {
        "version": CACHE_VERSION,
        "model": hashlib.sha256(content).hexdigest(),
        "settings": settings,
        "openvino": version,
        "device": core.get_property(device, "FULL_DEVICE_NAME"),
        "able": sorted(core.get_property(device, "OPTIMIZATION_CAPABILITIES")),
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    try:
        folder = cache_folder("openvino") / key
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, CapabilityError) as error:
        log.info("what OpenVINO compiles is not kept: %s", error)
        return {}
    return {"CACHE_DIR": str(folder)}
