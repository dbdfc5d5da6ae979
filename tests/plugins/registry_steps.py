"""A program of its own: what TensorRT-RTX's plugin registry holds after each step.

`load=LIBRARY` loads as `trtexec --staticPlugins` does, `dlopen=LIBRARY` as LD_PRELOAD and ONNX
Runtime do, `build=32:64:INT8` builds a network of all plugins with 32-bit indices, 64-bit sizes and
a mask of bytes. Prints a JSON list.
"""

from __future__ import annotations

import ctypes
import json
import sys

import tensorrt_rtx as trt
from onnx import TensorProto, helper

LOGGER = trt.Logger(trt.Logger.ERROR)
PLUGIN = {"domain": "trt.plugins", "plugin_namespace": "svit", "plugin_version": "1"}


def build(bits: int, size_bits: int, mask: str) -> int:
    """Bytes of the engine; 0 where the builder refused."""
    outputs = ["rows", "slots", "places", "lengths", "counts", "total", "fullest"]
    nodes = [
        helper.make_node("Cast", ["margins"], ["decision"], to=TensorProto.BOOL),
        helper.make_node("Cast", ["decision"], ["mask"], to=TensorProto.DataType.Value(mask)),
        helper.make_node(
            "SvitCompact", ["mask"], outputs, index_bits=bits, size_bits=size_bits, **PLUGIN
        ),
        helper.make_node("SvitGather", ["x", "rows"], ["packed"], **PLUGIN),
        helper.make_node("Relu", ["packed"], ["computed"]),
        helper.make_node("SvitGather", ["computed", "slots"], ["padded"], **PLUGIN),
        helper.make_node("SvitScatter", ["x", "rows", "computed"], ["updated"], **PLUGIN),
    ]
    real, int32 = TensorProto.FLOAT, TensorProto.INT32
    graph = helper.make_graph(
        nodes,
        "all",
        [
            helper.make_tensor_value_info("x", real, ["rows_in_all", 24]),
            helper.make_tensor_value_info("margins", real, ["batch", 17]),
        ],
        [
            helper.make_tensor_value_info("updated", real, ["rows_in_all", 24]),
            helper.make_tensor_value_info("padded", real, ["batch", "fullest", 24]),
            helper.make_tensor_value_info("lengths", int32, ["batch_and_one"]),
        ],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("trt.plugins", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    builder = trt.Builder(LOGGER)
    network = builder.create_network(0)
    if not trt.OnnxParser(network, LOGGER).parse(model.SerializeToString()):
        return 0
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("x", (17, 24), (17 * 4, 24), (17 * 8, 24))
    profile.set_shape("margins", (1, 17), (4, 17), (8, 17))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    return engine.nbytes if engine else 0


def main(steps: list[str]) -> None:
    registry = trt.get_plugin_registry()
    report = []
    for step in steps:
        what, _, argument = step.partition("=")
        if what == "load":
            result = registry.load_library(argument) is not None
        elif what == "dlopen":
            result = ctypes.CDLL(argument) is not None
        else:
            bits, size_bits, mask = argument.split(":")
            result = build(int(bits), int(size_bits), mask)
        ours = [c.name for c in registry.all_creators if c.plugin_namespace == "svit"]
        report.append([result, sorted(ours)])
    print(json.dumps(report))


main(sys.argv[1:])
