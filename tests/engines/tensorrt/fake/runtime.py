"""The runtime side of a fake TensorRT: engines that compute their ONNX graph on the fake device.

It keeps the library's rules that a runner can break: shapes within the profile, addresses for every
tensor, an allocator for a data-dependent output, one plain enqueue after a change before a capture,
and no use of a captured graph once its context serves another shape (the replay then gives NaN).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tests.engines.tensorrt.fake.cuda import Device, Error, Work

MAGIC = {"tensorrt": b"ftrt", "tensorrt_rtx": b"vtrt"}

DataType = IntEnum("DataType", ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "BF16", "INT64"])
TensorIOMode = IntEnum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
TensorLocation = IntEnum("TensorLocation", ["DEVICE", "HOST"])
TensorFormat = IntEnum("TensorFormat", ["LINEAR", "CHW32"])
LayerInformationFormat = IntEnum("LayerInformationFormat", ["ONELINE", "JSON"])
ExecutionContextAllocationStrategy = IntEnum(
    "ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"]
)
DynamicShapesKernelSpecializationStrategy = IntEnum(
    "DynamicShapesKernelSpecializationStrategy", ["LAZY", "EAGER", "NONE"]
)
Severity = IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

_TYPES = {
    DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT8: np.int8,
    DataType.INT32: np.int32, DataType.BOOL: np.bool_, DataType.UINT8: np.uint8,
    DataType.INT64: np.int64,
}  # fmt: skip
_OF_ONNX = {
    onnx.TensorProto.FLOAT: DataType.FLOAT, onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.INT32: DataType.INT32, onnx.TensorProto.BOOL: DataType.BOOL,
    onnx.TensorProto.INT64: DataType.INT64, onnx.TensorProto.BFLOAT16: DataType.BF16,
}  # fmt: skip


def nptype(dtype: DataType) -> type:
    if dtype not in _TYPES:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return _TYPES[dtype]


class ILogger:
    Severity = Severity
    INTERNAL_ERROR, ERROR = Severity.INTERNAL_ERROR, Severity.ERROR
    WARNING, INFO, VERBOSE = Severity.WARNING, Severity.INFO, Severity.VERBOSE

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class IProfiler:
    """Told of each layer after each run."""

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


class IOutputAllocator:
    """As in the library, the methods exist only in what derives from it."""


@dataclass
class Plan:
    """What a fake engine file holds.

    Attributes:
        onnx: the graph it computes.
        profiles: smallest, typical and largest shape of each input, one mapping a profile.
        version: of the library that built it.
        layers: what the inspector tells; names only where they are strings.
        plugins: creators that the engine needs.
        data_dependent: outputs whose size only the device knows.
        ms: what a run costs on the device's clock.
    """

    onnx: bytes
    profiles: list[dict[str, Sequence[Sequence[int]]]]
    version: str = "10.16.1.11"
    library: str = "tensorrt"
    layers: list[Any] = field(default_factory=list)
    plugins: list[str] = field(default_factory=list)
    data_dependent: list[str] = field(default_factory=list)
    on_host: list[str] = field(default_factory=list)
    ms: float = 2.0

    def to_bytes(self) -> bytes:
        about = {name: value for name, value in vars(self).items() if name != "onnx"}
        head = json.dumps(about).encode()
        size = len(head).to_bytes(4, "little")
        return MAGIC[self.library] + size + head + self.onnx + b"end"

    @classmethod
    def from_bytes(cls, plan: bytes) -> Plan:
        """Raises ValueError, with the library's words, for anything but a whole plan."""
        if plan[:4] not in MAGIC.values():
            raise ValueError(
                "Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed"
            )
        if not plan.endswith(b"end"):
            raise ValueError("Serialization assertion plan.header.size == blobSize failed")
        end = 8 + int.from_bytes(plan[4:8], "little")
        return cls(onnx=plan[end:-3], **json.loads(plan[8:end]))


class PluginRegistry:
    """Knows creators by the name of the file they came in."""

    def __init__(self) -> None:
        self.creators: list[str] = []

    def load_library(self, plugin_path: str) -> object | None:
        name = plugin_path.rsplit("/", 1)[-1]
        if name in self.creators:
            return None
        self.creators.append(name)
        return object()


class Runtime:
    device: Device
    library: str
    version: str

    def __init__(self, logger: ILogger) -> None:
        self.logger, self.engine_host_code_allowed = logger, False
        self._registry = PluginRegistry()

    def get_plugin_registry(self) -> PluginRegistry:
        return self._registry

    def deserialize_cuda_engine(self, serialized: bytes) -> ICudaEngine | None:
        try:
            plan = Plan.from_bytes(bytes(serialized))
            if serialized[:4] != MAGIC[self.library] or plan.version != self.version:
                raise ValueError("Serialization assertion stdVersionRead == kVERSION failed")
            for name in plan.plugins:
                if name not in self._registry.creators:
                    raise ValueError(f"Cannot find plugin: {name}, version: 1, namespace: svit")
        except ValueError as error:
            message = f"IRuntime::deserializeCudaEngine: Error Code 1: Serialization ({error})"
            self.logger.log(Severity.ERROR, message)
            return None
        return ICudaEngine(self, plan)


@lru_cache(maxsize=4)
def open_session(model: bytes) -> onnxruntime.InferenceSession:
    """What computes a graph; engines of the same one share it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # tests run side by side
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class ICudaEngine:
    device_memory_size_v2 = 4096

    def __init__(self, runtime: Runtime, plan: Plan) -> None:
        self.runtime, self.plan = runtime, plan
        self.logger, self.device = runtime.logger, runtime.device
        self.session = open_session(plan.onnx)
        self._inferred: dict[tuple[tuple[int, ...], ...], dict[str, tuple[int, ...]]] = {}
        graph = onnx.ModelProto.FromString(plan.onnx).graph
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]
        self.types = {
            value.name: _OF_ONNX[value.type.tensor_type.elem_type]
            for value in (*graph.input, *graph.output)
        }
        self.shapes = {
            value.name: tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)
            for value in (*graph.input, *graph.output)
        }

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.plan.profiles)

    def get_tensor_name(self, index: int) -> str:
        return (self.inputs + self.outputs)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.types[name]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name in self.plan.on_host else TensorLocation.DEVICE

    def get_tensor_format(self, name: str) -> TensorFormat:
        return TensorFormat.LINEAR

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.plan.profiles[profile_index][name]]

    def infer_shapes(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Those of the outputs, seen of one run for inputs of given shapes."""
        key = tuple(shapes[name] for name in self.inputs)
        if key not in self._inferred:
            feeds = {
                name: np.zeros(shape, nptype(self.types[name])) for name, shape in shapes.items()
            }
            found = self.session.run(self.outputs, feeds)
            self._inferred[key] = {
                name: array.shape for name, array in zip(self.outputs, found, strict=True)
            }
        return self._inferred[key]

    def create_execution_context(self, strategy: Any = None) -> IExecutionContext | None:
        if "create_execution_context" in self.device.failures:
            self.logger.log(Severity.ERROR, "Error Code 2: OutOfMemory (Requested 9 bytes.)")
            return None
        if isinstance(strategy, RuntimeConfig):
            return RtxContext(self, strategy)
        managed = strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        if self.runtime.library == "tensorrt_rtx":
            return RtxContext(self, RuntimeConfig(self))
        return IExecutionContext(self, managed)

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self)


class EngineInspector:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine, self.execution_context = engine, None

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        assert format is LayerInformationFormat.JSON
        return json.dumps({"Layers": self.engine.plan.layers, "Bindings": self.engine.inputs})


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, user_managed: bool) -> None:
        self.engine, self.device = engine, engine.device
        self.memory: int | None = None if user_managed else 0
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}
        self.flushed = False  # whether an enqueue saw the shapes and addresses as they are
        self.profiler: IProfiler | None = None

    def _error(self, message: str) -> bool:
        self.engine.logger.log(Severity.ERROR, f"IExecutionContext::enqueueV3: {message}")
        return False

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        self.device.view(memory, size)
        self.memory = memory

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.profile, self.shapes = profile_index, {}
        self.device.enqueue(stream_handle, Work(lambda: None))
        return 0 <= profile_index < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        low, _, high = self.engine.plan.profiles[self.profile][name]
        if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return self._error(f"Error Code 3: {list(shape)} violates profile {self.profile}")
        self.flushed &= self.shapes.get(name) == tuple(shape)
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        if name in self.engine.plan.data_dependent:
            return self.engine.shapes[name]
        return self.engine.infer_shapes(self.shapes)[name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.flushed &= self.addresses.get(name) == memory
        self.addresses[name] = memory
        return True

    def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
        self.allocators[name] = output_allocator
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, device = self.engine, self.device
        if device.failures.get("execute_async_v3"):
            error = device.failures["execute_async_v3"].pop(0)
            return self._error(f"Error Code 1: Cuda Runtime ({error.name})")
        if self.memory is None:
            return self._error("Error Code 3: no device memory was given")
        if set(engine.inputs) - set(self.shapes) or set(engine.inputs) - set(self.addresses):
            return self._error("Error Code 3: an input has no shape or no address")
        capturing = device.capturing(stream_handle)
        if capturing and (not self.flushed or engine.plan.data_dependent):
            device.invalidate(stream_handle)
            return self._error("Error Code 1: operation not permitted when stream is capturing")
        self.flushed = True
        if self.profiler is not None:
            assert not capturing
            for layer in engine.plan.layers:  # half of a run, in equal parts
                name = layer if isinstance(layer, str) else layer["Name"]
                self.profiler.report_layer_time(name, engine.plan.ms / 2 / len(engine.plan.layers))
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        replay = capturing

        def compute() -> dict[str, np.ndarray]:
            feeds = {}
            for name in engine.inputs:
                dtype = np.dtype(nptype(engine.types[name]))
                size = int(np.prod(shapes[name])) * dtype.itemsize
                raw = device.view(addresses[name], size).raw
                feeds[name] = np.frombuffer(raw, dtype).reshape(shapes[name])
            arrays = engine.session.run(engine.outputs, feeds)
            stale = replay and (shapes, addresses) != (self.shapes, self.addresses)
            return {
                name: np.full_like(array, np.nan) if stale and array.dtype.kind == "f" else array
                for name, array in zip(engine.outputs, arrays, strict=True)
            }

        def write(arrays: dict[str, np.ndarray]) -> None:
            for name, array in arrays.items():
                device.view(addresses[name], array.nbytes)[:] = array.tobytes()

        if not engine.plan.data_dependent:
            device.enqueue(stream_handle, Work(lambda: write(compute()), engine.plan.ms))
            return True
        if device.drain(stream_handle) is not Error.cudaSuccess:
            return self._error("Error Code 1: Cuda Runtime (an earlier error)")
        arrays = compute()
        for name in engine.plan.data_dependent:
            allocator = self.allocators[name]
            allocate = getattr(allocator, "reallocate_output_async", None)
            size = max(1, arrays[name].nbytes)
            if allocate is None:
                addresses[name] = allocator.reallocate_output(name, 0, size, 256)
            else:
                addresses[name] = allocate(name, 0, size, 256, stream_handle)
            if not addresses[name]:
                return self._error(f"Error Code 2: OutOfMemory (no memory for {name})")
            allocator.notify_shape(name, arrays[name].shape)
        device.enqueue(stream_handle, Work(lambda: write(arrays), engine.plan.ms))
        return True


class RuntimeCache:
    """Kernels that were compiled: the shapes that they are for, on a GPU."""

    def __init__(self, device: Device) -> None:
        self.device, self.shapes = device, set[str]()

    def serialize(self) -> memoryview:
        return memoryview(f"{self.device.name}: {' '.join(sorted(self.shapes))}".encode())

    def deserialize(self, blob: bytes) -> bool:
        owner, _, shapes = bytes(blob).decode(errors="replace").partition(": ")
        if owner == self.device.name:
            self.shapes.update(shapes.split())
        return owner == self.device.name


class RuntimeConfig:
    """Of TensorRT-RTX: by default kernels for a shape are compiled while others stand in."""

    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        strategies = DynamicShapesKernelSpecializationStrategy
        self.dynamic_shapes_kernel_specialization_strategy = strategies.LAZY
        self.managed, self.cache = False, RuntimeCache(engine.device)

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.managed = strategy is ExecutionContextAllocationStrategy.USER_MANAGED

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.engine.device)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class RtxContext(IExecutionContext):
    """TensorRT-RTX compiles where it runs, and can tell whether a capture would work.

    The device's calls tell of each kernel that it compiles, and of each that stands in for one.
    """

    def __init__(self, engine: ICudaEngine, config: RuntimeConfig) -> None:
        super().__init__(engine, config.managed)
        self.config = config

    def execute_async_v3(self, stream_handle: int) -> bool:
        shape = "x".join(map(str, self.shapes.get(self.engine.inputs[0], ())))
        if shape not in self.config.cache.shapes:
            strategy = self.config.dynamic_shapes_kernel_specialization_strategy
            eager = strategy is DynamicShapesKernelSpecializationStrategy.EAGER
            self.device.calls.append(f"compile {shape}" if eager else "fallback kernel")
            self.config.cache.shapes.update([shape] if eager else [])
        return super().execute_async_v3(stream_handle)

    def is_stream_capturable(self, stream: int) -> bool:
        return not self.engine.plan.data_dependent


def runtime_side(name: str, version: str, device: Device) -> dict[str, Any]:
    """The runtime members of the module `tensorrt` or `tensorrt_rtx` of a version."""
    own = type("Runtime", (Runtime,), {"device": device, "library": name, "version": version})
    strategies = DynamicShapesKernelSpecializationStrategy
    compiles = {strategies.__name__: strategies} if name == "tensorrt_rtx" else {}
    return {
        **compiles,
        "__version__": version,
        "Runtime": own,
        "nptype": nptype,
        "ILogger": ILogger,
        "IOutputAllocator": IOutputAllocator,
        "IProfiler": IProfiler,
        "DataType": DataType,
        "TensorIOMode": TensorIOMode,
        "TensorLocation": TensorLocation,
        "TensorFormat": TensorFormat,
        "LayerInformationFormat": LayerInformationFormat,
        "ExecutionContextAllocationStrategy": ExecutionContextAllocationStrategy,
    }
