"""A graph for a build with the plugin library: its plugin nodes as this TensorRT will have them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from svit_deploy.errors import ExportError
from svit_deploy.graph.builder import FUNCTIONS_DOMAIN
from svit_deploy.io.onnx_file import load_onnx
from svit_deploy.machine.tensorrt import Library

_COMPACT = "SvitCompact"
_KINDS = ("PLUGIN_V3", "PLUGIN_V2", "PLUGIN")


@dataclass(frozen=True)
class PluginForm:
    """What headers and samples of TensorRT disagree on.

    Attributes:
        size_bits: of the sizes that a plugin tells: 32 by the headers of 10.3 to 11.1, 64 in the
            samples from 10.15 on.
        mask: type of the mask that SvitCompact reads: a plugin's outputs may not be BOOL, and
            where its inputs may not either, they are bytes.
    """

    size_bits: int = 32
    mask: str = "BOOL"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


FORMS = (PluginForm(), PluginForm(64), PluginForm(mask="INT8"), PluginForm(64, "INT8"))
"""In the order in which they are tried."""


class PluginGraph:
    """A graph whose plugin nodes are built by plugins, and by nothing else.

    TensorRT 10.3 to 10.6 prefers the functions of a model to plugins, so they are left out.
    """

    def __init__(self, onnx_path: Path) -> None:
        self._model = load_onnx(onnx_path)
        del self._model.functions[:]
        self._nodes = [n for n in self._model.graph.node if n.domain == FUNCTIONS_DOMAIN]

    @property
    def forms(self) -> tuple[PluginForm, ...]:
        """Those that would make a difference to this graph."""
        return FORMS if any(node.op_type == _COMPACT for node in self._nodes) else FORMS[:1]

    def write(self, path: Path, form: PluginForm) -> Path:
        model = onnx.ModelProto.FromString(self._model.SerializeToString())
        nodes = [changed for node in model.graph.node for changed in _formed(node, form)]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        onnx.save(model, path)
        return path

    def check(self, library: Library, network: Any) -> None:
        """Raises ExportError where a network has none of the plugins that its graph names."""
        kinds = [library.member("LayerType", name) for name in _KINDS]
        layers = (network.get_layer(number).type for number in range(network.num_layers))
        if self._nodes and not any(kind in kinds for kind in layers):
            raise ExportError(
                f"{library.name} made no plugin of the graph's {len(self._nodes)} plugin nodes",
                "use another release of it, or --plugin-library none",
            )


def _formed(node: onnx.NodeProto, form: PluginForm) -> Iterator[onnx.NodeProto]:
    """A node as it is, or SvitCompact in a form, with what makes its mask so."""
    if node.domain == FUNCTIONS_DOMAIN and node.op_type == _COMPACT:
        if form.size_bits != FORMS[0].size_bits:
            node.attribute.append(helper.make_attribute("size_bits", form.size_bits))
        if form.mask != FORMS[0].mask:
            mask, bytes_ = node.input[0], f"{node.name}/mask"
            node.input[0] = bytes_
            kind = TensorProto.DataType.Value(form.mask)
            yield helper.make_node("Cast", [mask], [bytes_], name=bytes_, to=kind)
    yield node
