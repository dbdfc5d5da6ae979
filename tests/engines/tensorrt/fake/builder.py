"""The builder side of a fake TensorRT: a parsed graph becomes layers, a build becomes a `Plan`.

Names and numbers differ between versions as they do in the library. Nodes of the domain `fault`
make a build go wrong: their operator says how, their attribute `text` what TensorRT says of it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import onnx

from tests.engines.tensorrt.fake.cuda import Device
from tests.engines.tensorrt.fake.runtime import DataType, Plan, PluginRegistry, Severity

PLUGIN_FILE = "fake plugins: "
SIGNALS = {"Segfault": signal.SIGSEGV, "Abort": signal.SIGABRT, "Kill": signal.SIGKILL}
_TYPES = {
    1: DataType.FLOAT, 6: DataType.INT32, 7: DataType.INT64, 9: DataType.BOOL,
    10: DataType.HALF, 16: DataType.BF16,
}  # fmt: skip


@dataclass
class Tensor:
    name: str
    shape: tuple[int, ...] = ()
    dtype: DataType = DataType.FLOAT
    attention: Any = None  # what it is an output of


@dataclass
class Layer:
    type: Any
    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    fault: tuple[str, str] | None = None
    weights: Any = None
    reshape_dims: tuple[int, ...] = ()

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]

    def set_input(self, index: int, tensor: Tensor) -> None:
        self.inputs[index] = tensor


class AttentionInputLayer(Layer):
    """What a parsed Attention begins with; only this class has `attention`."""

    @property
    def attention(self) -> Attention:
        if self.outputs[0].attention is None:
            self.outputs[0].attention = Attention()
        return self.outputs[0].attention


@dataclass
class Attention:
    decomposable: bool = False
    name: str = ""


@dataclass
class PackedAttention(Attention):
    query_form: Any = None
    key_value_form: Any = None
    query_lengths: Tensor | None = None
    key_value_lengths: Tensor | None = None
    output: Tensor | None = None

    def get_output(self, index: int) -> Tensor:
        assert index == 0 and self.output is not None
        return self.output


class Registry(PluginRegistry):
    """Loads a text file that names its plugins."""

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self.logger, self.all_creators = logger, []
        self.files: list[str] = []

    def load_library(self, plugin_path: str) -> object | None:
        text = Path(plugin_path).read_text(errors="replace")
        if not text.startswith(PLUGIN_FILE):
            self.logger.log(Severity.ERROR, f"Unable to open library: {plugin_path}: not ELF")
            return None
        self.all_creators += text.removeprefix(PLUGIN_FILE).split()
        self.files.append(Path(plugin_path).name)
        return object()


@dataclass
class Profile:
    shapes: dict[str, Sequence[Sequence[int]]] = field(default_factory=dict)

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self.shapes[input] = [min, opt, max]


class TimingCache:
    MAGIC = b"timings of "

    def __init__(self, device: str, content: bytes) -> None:
        self.device, self.content = device, content

    def serialize(self) -> memoryview:
        return memoryview(self.MAGIC + self.content)


class Config:
    """Has the members of the real one, and refuses others."""

    __slots__ = (
        "_cache", "_device", "builder_optimization_level", "flags", "logger", "pools", "profiles",
        "profiling_verbosity", "progress_monitor",
    )  # fmt: skip

    def __init__(self, logger: Any, device: Device, flags: set[Any]) -> None:
        self.logger, self._device, self.flags = logger, device, flags
        self.pools: dict[Any, int] = {}
        self.profiles: list[Profile] = []
        self.builder_optimization_level = 3
        self.profiling_verbosity = self.progress_monitor = self._cache = None

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self.pools[pool] = pool_size

    def add_optimization_profile(self, profile: Profile) -> int:
        low, typical, high = profile.shapes["images"]
        if not all(a <= b <= c for a, b, c in zip(low, typical, high, strict=True)):
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache | None:
        blob = serialized_timing_cache
        if blob and not blob.startswith(TimingCache.MAGIC):
            self.logger.log(Severity.ERROR, "Error Code 1: Serialization (bad timing cache)")
            return None
        owner = blob.removeprefix(TimingCache.MAGIC).decode()
        return TimingCache(owner or self._device.name, owner.encode())

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        if cache.device != self._device.name and not ignore_mismatch:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self._cache


class Network:
    def __init__(self, enums: dict[str, Any], strongly_typed: bool) -> None:
        self.enums, self.strongly_typed = enums, strongly_typed
        self.layers: list[Layer] = []
        self.inputs: list[Tensor] = []
        self.model: onnx.ModelProto | None = None

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def add(self, kind: Any, inputs: list[Tensor], dtype: Any = None, shape: Any = ()) -> Layer:
        output = Tensor(f"(Unnamed {len(self.layers)})", shape, dtype or DataType.FLOAT)
        self.layers.append(Layer(kind, output.name, inputs, [output]))
        return self.layers[-1]


class PackingNetwork(Network):
    """With what is needed for attention on packed rows."""

    def add_shuffle(self, input: Tensor) -> Layer:
        return self.add("SHUFFLE", [input], input.dtype)

    def add_constant(self, shape: Any, weights: Any) -> Layer:
        layer = self.add("CONSTANT", [], shape=shape)
        layer.weights = weights
        return layer

    def add_cast(self, input: Tensor, to_type: Any) -> Layer:
        return self.add("CAST", [input], to_type)

    def add_elementwise(self, input1: Tensor, input2: Tensor, op: Any) -> Layer:
        assert input1.dtype == input2.dtype, "strong typing wants equal types"
        return self.add("ELEMENTWISE", [input1, input2], input1.dtype)

    def add_attention_v2(self, query: Any, key: Any, value: Any, norm_op: Any, causal_kind: Any):
        layer = self.add(self.enums["LayerType"].ATTENTION_INPUT, [query, key, value], query.dtype)
        layer.outputs[0].attention = PackedAttention(output=layer.outputs[0])
        return layer.outputs[0].attention


@dataclass
class ParserError:
    text: str
    node: str = ""
    operator: str = ""

    def desc(self) -> str:
        return self.text

    def node_name(self) -> str:
        return self.node

    def node_operator(self) -> str:
        return self.operator


class OnnxParser:
    def __init__(self, network: Network, logger: Any) -> None:
        self.network, self.logger = network, logger
        self.errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> ParserError:
        return self.errors[index]

    def parse_from_file(self, model: str) -> bool:
        self.network.model = found = onnx.load(model)
        for value in found.graph.input:
            kind = value.type.tensor_type
            shape = tuple(dim.dim_value or -1 for dim in kind.shape.dim)
            self.network.inputs.append(Tensor(value.name, shape, _TYPES[kind.elem_type]))
        tensors = {tensor.name: tensor for tensor in self.network.inputs}
        typed = {v.name: v.type.tensor_type for v in found.graph.value_info}
        functions = {function.name for function in found.functions}
        for node in found.graph.node:
            if node.domain == "parser fault":
                text = onnx.helper.get_node_attr_value(node, "text").decode()
                self.errors.append(ParserError(text, node.name, node.op_type))
            elif node.domain == "trt.plugins":
                known = {*functions, *self.network.enums["registry"].all_creators}
                if node.op_type not in known:
                    self.errors.append(ParserError("Plugin not found", node.name, node.op_type))
            for name in node.output:
                kind = typed.get(name)
                shape = [dim.dim_value or -1 for dim in kind.shape.dim] if kind else []
                dtype = _TYPES[kind.elem_type] if kind else DataType.FLOAT
                tensors[name] = Tensor(name, tuple(shape), dtype)
            self._add(node, tensors)
        return not self.errors

    def _add(self, node: onnx.NodeProto, tensors: dict[str, Tensor]) -> None:
        enums, fault = self.network.enums, None
        kinds, model = enums["LayerType"], self.network.model
        kind = getattr(kinds, "ATTENTION_INPUT", None) if node.op_type == "Attention" else None
        if node.domain == "trt.plugins" and node.op_type in enums["registry"].all_creators:
            functions = {function.name for function in model.functions}
            if not (enums["prefers functions"] and node.op_type in functions):
                kind = kinds.PLUGIN_V3
        if node.domain == "fault":
            text = onnx.helper.get_node_attr_value(node, "text").decode()
            fault = (node.op_type, text)
        inputs = [tensors.get(name, Tensor(name)) for name in node.input]
        outputs = [tensors[name] for name in node.output]
        kind = kinds.IDENTITY if kind is None else kind
        self.network.layers.append(Layer(kind, node.name, inputs, outputs, fault))


class Builder:
    """Builds plans; `made` remembers the configuration of the last build and its network."""

    name: str
    version: str
    device: Device
    enums: dict[str, Any]
    network_class: type[Network]
    made: tuple[Config, Network]

    def __init__(self, logger: Any) -> None:
        if self.name == "tensorrt" and not self.device.count:
            logger.log(Severity.ERROR, "createInferBuilder: Error Code 6: CUDA initialization "
                       "failure with error: 35. Please check your CUDA installation")  # fmt: skip
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger = logger
        self.registry = self.enums["registry"] = Registry(logger)

    def get_plugin_registry(self) -> Registry:
        return self.registry

    def create_network(self, flags: int = 0) -> Network:
        known = self.enums["NetworkDefinitionCreationFlag"]
        if flags >> (max(known) + 1):
            raise ValueError(f"flags {flags:#x} has bits that no flag of this version has")
        always = "EXPLICIT_BATCH" not in known.__members__
        return self.network_class(self.enums, always or bool(flags >> known.STRONGLY_TYPED & 1))

    def create_builder_config(self) -> Config:
        return Config(self.logger, self.device, {self.enums["BuilderFlag"].TF32})

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> memoryview | None:
        type(self).made = config, network
        if self._report(config) and all(self._survives(layer) for layer in network.layers):
            return memoryview(self._plan(network, config).to_bytes())
        return None

    def _report(self, config: Config) -> bool:
        """Reports progress as the library does: phases in phases; False when cancelled."""
        monitor = config.progress_monitor
        if monitor is None:
            return True
        monitor.phase_start("Building engine", None, 2)
        for step in range(2):
            monitor.phase_start("Timing graph nodes", "Building engine", 4)
            for inner in range(4):
                if not monitor.step_complete("Timing graph nodes", inner):
                    return self._error("Error Code 7: BuildCanceled (by user)")
            monitor.phase_finish("Timing graph nodes")
            monitor.step_complete("Building engine", step)
        monitor.phase_finish("Building engine")
        return True

    def _survives(self, layer: Layer) -> bool:
        if layer.type in (
            "ATTENTION_INPUT",
            getattr(self.enums["LayerType"], "ATTENTION_INPUT", None),
        ):
            attention = layer.outputs[0].attention
            if attention is None or not attention.decomposable:
                return self._error("Error Code 1: Myelin (it may be marked as decomposable)")
        if layer.fault is None:
            return True
        kind, text = layer.fault
        if kind == "Chatter":
            os.write(1, f"{text}\n".encode())
            return True
        if kind in SIGNALS:
            os.write(1, f"{text}\n".encode())
            os.kill(os.getpid(), SIGNALS[kind])
        if kind == "Raise":
            raise ValueError(text)
        if kind == "Slow":
            Path(text).write_text(str(os.getpid()))
            time.sleep(60)
        outputs = [tensor for one in self.made[1].layers for tensor in one.outputs]
        if kind == "NoPluginForm":  # its text: the one form that this library takes
            wanted = dict(part.split("=") for part in text.split())
            form = {"size_bits": "32", "mask": "BOOL"}
            for node in self.made[1].model.graph.node:
                told = {a.name: str(a.i) for a in node.attribute}
                form |= {name: value for name, value in told.items() if name in form}
                if node.op_type == "Cast":
                    form["mask"] = onnx.TensorProto.DataType.Name(int(told["to"]))
            return form == wanted or self._error("Error Code 4: unsupported format combination")
        packed = any(isinstance(tensor.attention, PackedAttention) for tensor in outputs)
        return self._error(text) if kind != "NoPackedKernel" or packed else True

    def _error(self, text: str) -> bool:
        self.logger.log(Severity.ERROR, text)
        return False

    def _plan(self, network: Network, config: Config) -> Plan:
        assert network.model is not None
        if config._cache is not None:
            config._cache.content = self.device.name.encode()
        detailed = config.profiling_verbosity == self.enums["ProfilingVerbosity"].DETAILED
        names = [layer.name for layer in network.layers]
        return Plan(
            network.model.SerializeToString(),
            [profile.shapes for profile in config.profiles],
            version=self.version,
            library=self.name,
            layers=[{"Name": name} for name in names] if detailed else names,
            plugins=self.registry.files,
        )


def builder_side(name: str, version: str, device: Device) -> dict[str, Any]:
    """The builder members of the module `tensorrt` or `tensorrt_rtx` of a version."""
    numbers = tuple(int(part) for part in version.split(".")[:2])
    new = name == "tensorrt_rtx" or numbers >= (11, 0)
    flags = ["STRONGLY_TYPED"] if new else ["EXPLICIT_BATCH", "STRONGLY_TYPED"]
    allocation = ["REQUIRE_USER_ALLOCATION"] if name == "tensorrt_rtx" else []
    modes = (
        ["DEBUG", "TF32", *allocation] if new else ["FP16", "INT8", "DEBUG", "GPU_FALLBACK", "TF32"]
    )
    kinds = ["CONVOLUTION", "CAST", "ACTIVATION", "IDENTITY", "PLUGIN_V2", "PLUGIN_V3"]
    if new or numbers >= (10, 14):
        kinds.insert(1, "ATTENTION_INPUT")
    enums: dict[str, Any] = {
        "NetworkDefinitionCreationFlag": _enum("NetworkDefinitionCreationFlag", flags),
        "BuilderFlag": _enum("BuilderFlag", modes),
        "LayerType": _enum("LayerType", kinds),
        "prefers functions": name == "tensorrt" and numbers < (10, 7),
        "MemoryPoolType": _enum("MemoryPoolType", ["WORKSPACE", "TACTIC_DRAM"]),
        "ProfilingVerbosity": _enum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "NONE", "DETAILED"]),
    }
    members = {name: value for name, value in enums.items() if name[0].isupper()}
    if "ATTENTION_INPUT" in kinds:
        members["IAttentionInputLayer"] = AttentionInputLayer
    if new:
        members["AttentionIOForm"] = _enum("AttentionIOForm", ["PADDED_BHND", "PACKED_NHD"])
        members["AttentionNormalizationOp"] = _enum("AttentionNormalizationOp", ["NONE", "SOFTMAX"])
        members["CausalMaskKind"] = _enum("CausalMaskKind", ["NONE", "UPPER_LEFT"])
        members["ElementWiseOperation"] = _enum("ElementWiseOperation", ["SUM", "PROD"])
        members["IAttention"] = PackedAttention
    network = PackingNetwork if new else Network
    own = {"name": name, "version": version, "device": device, "enums": enums}
    members["Builder"] = type("Builder", (Builder,), {**own, "network_class": network})
    members["INetworkDefinition"], members["OnnxParser"] = network, OnnxParser
    members["IProgressMonitor"] = type("IProgressMonitor", (), {})
    return members


def _enum(name: str, members: list[str]) -> Any:
    return IntEnum(name, members, start=0)
