"""The part of a graph that ends in a value, and the same part written anew."""

from __future__ import annotations

import onnx
from onnx.utils import Extractor

from svit_deploy.bundle import Bundle
from svit_deploy.export.pipeline import build_graph
from svit_deploy.export.settings import ExportSettings
from svit_deploy.model.config import BatchRange
from svit_deploy.model.model import Model


def part_of(model: onnx.ModelProto, value: str) -> onnx.ModelProto:
    """What of a graph computes a value; all of it where none is named."""
    if not value:
        return model
    return Extractor(model).extract_model([one.name for one in model.graph.input], [value])


def written_anew(bundle: Bundle, model: Model) -> onnx.ModelProto:
    """The graph that this version writes of a model as the bundle was exported.

    Args:
        model: the checkpoint, with what the export chose (`verify.expected.LiveReference`).
    """
    manifest, tokens = bundle.manifest, bundle.manifest["tokens"]
    settings = ExportSettings(
        task=bundle.task.name,
        tokens=bundle.mode,
        precision=bundle.precision,
        batch=(BatchRange(**manifest["batch"]),),
        opset=manifest["opset"],
        gate_outputs=tokens["gate_outputs"],
        plugins=tokens["plugins"],
    )
    return build_graph(model, settings, bundle.budgets, bundle.sizes, {})


def same(one: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    """Whether two graphs compute the same with the same weights."""

    def content(model: onnx.ModelProto) -> tuple[list[bytes], dict[str, bytes]]:
        graph = model.graph
        nodes = [node.SerializeToString() for node in graph.node]
        return nodes, {one.name: one.SerializeToString() for one in graph.initializer}

    return content(one) == content(other)
