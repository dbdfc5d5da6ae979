"""An ONNX graph as OpenVINO has it, its operators as ONNX defines them."""

from __future__ import annotations

import io
from types import ModuleType
from typing import Any


def read_graph(openvino: ModuleType, content: bytes) -> Any:
    """Reads an ONNX file, as ONNX and as no other format that OpenVINO knows.

    Returns:
        An `openvino.Model`.

    Raises:
        Exception: of OpenVINO's many kinds, if it cannot.
    """
    from openvino.frontend import FrontEndManager

    frontend = FrontEndManager().load_by_framework("onnx")
    graph = frontend.convert(frontend.load(io.BytesIO(content)))
    for op in graph.get_ordered_ops():
        if op.get_type_name() == "TopK":
            _make_stable(openvino, op)
    graph.validate_nodes_and_infer_types()
    return graph


def _make_stable(openvino: ModuleType, op: Any) -> None:
    """Lets the lower index win among equal values, as ONNX asks; OpenVINO lets any win.

    Equal ones are common: tokens and anchors of flat parts of a picture.
    """
    told = op.get_attributes()
    stable = openvino.opset11.topk(
        op.input_value(0),
        op.input_value(1),
        told["axis"],
        told["mode"],
        "value",
        told["index_element_type"],
        stable=True,
    )
    stable.set_friendly_name(op.get_friendly_name())
    for before, after in zip(op.outputs(), stable.outputs(), strict=True):
        after.set_names(before.get_names())
        before.replace(after)
