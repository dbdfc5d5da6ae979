"""What an ONNX file holds, read from its protobuf; no runtime is asked."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from svit_deploy.graph.edit import read_scalar
from svit_deploy.inspection.report import Inspection, Section, listed, mebibytes, number
from svit_deploy.io.files import hash_file
from svit_deploy.io.onnx_file import (
    DATA_DEPENDENT,
    all_nodes,
    all_tensors,
    custom_domains,
    load_onnx,
    random_operators,
    read_metadata,
)

_THRESHOLD = re.compile(r"gate_(\d{1,4})\.threshold")
_SHOWN_METADATA = {
    "arch": "architecture",
    "method": "family",
    "mode": "token mode",
    "batch": "batch",
    "gating": "gating",
    "checkpoint_sha256": "checkpoint",
}


def inspect_onnx(path: Path) -> Inspection:
    """Describes an ONNX file, exported by this package or not.

    Raises:
        InputError: see `load_onnx`.
    """
    model = load_onnx(path)
    operators = Counter(_operator(node) for node in all_nodes(model))
    metadata = read_metadata(model)
    thresholds = gate_thresholds(model)
    facts: dict[str, Any] = {
        "size_bytes": path.stat().st_size,
        "sha256": hash_file(path),
        "ir_version": model.ir_version,
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "inputs": _values(model, model.graph.input),
        "outputs": _values(model, model.graph.output),
        "nodes": operators.total(),
        "operators": dict(sorted(operators.items())),
        "functions": len(model.functions),
        "tensors": sum(1 for _ in all_tensors(model)),
        "tensor_bytes": sum(tensor.ByteSize() for tensor in all_tensors(model)),
        "random_operators": random_operators(model),
        "custom_domains": custom_domains(model),
        "data_dependent_operators": {
            name: count for name, count in sorted(operators.items()) if name in DATA_DEPENDENT
        },
        "metadata": metadata or None,
        "gates": [
            {"gate": gate, "threshold": value if math.isfinite(value) else None}
            for gate, value in thresholds.items()
        ],
    }
    sections = [
        Section(_overview(facts)),
        Section(_signature(facts), ("input or output", "type", "shape")),
    ]
    if thresholds:
        rows = tuple((str(gate), number(value)) for gate, value in thresholds.items())
        sections.append(Section(rows, ("gate", "threshold in the graph")))
    notes = _notes(facts, thresholds)
    return Inspection("onnx", path.name, facts, tuple(sections), notes)


def gate_thresholds(model: onnx.ModelProto) -> dict[int, float]:
    """The threshold of each gate, from the initializers named as `svit-deploy export` does.

    Raises:
        InputError: one of them is no number.
    """
    names = (_THRESHOLD.fullmatch(tensor.name) for tensor in model.graph.initializer)
    return {int(name[1]): read_scalar(model, name[0]) for name in names if name}


def _operator(node: onnx.NodeProto) -> str:
    standard = node.domain in ("", "ai.onnx")
    return node.op_type if standard else f"{node.domain}::{node.op_type}"


def _values(model: onnx.ModelProto, values: Iterable[onnx.ValueInfoProto]) -> list[dict[str, Any]]:
    """Name, type and shape of each; weights, which old files list as inputs, are left out."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        {"name": value.name, "type": _type(value.type), "shape": _shape(value.type)}
        for value in values
        if value.name not in weights
    ]


def _type(kind: onnx.TypeProto) -> str:
    if not kind.HasField("tensor_type"):
        return (kind.WhichOneof("value") or "unknown").removesuffix("_type")
    code = kind.tensor_type.elem_type
    known = code in TensorProto.DataType.values()
    return TensorProto.DataType.Name(code).lower() if known else f"type {code}"


def _shape(kind: onnx.TypeProto) -> list[int | str] | None:
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in kind.tensor_type.shape.dim
    ]


def _overview(facts: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    metadata = facts["metadata"] or {}
    opsets = (f"{domain} {version}" for domain, version in facts["opsets"].items())
    counts = (f"{name} {count}" for name, count in facts["operators"].items())
    return (
        ("sha256", facts["sha256"]),
        ("size", mebibytes(facts["size_bytes"])),
        ("opset", f"{', '.join(opsets)}; IR version {facts['ir_version']}"),
        ("producer", facts["producer"] or "unknown"),
        ("tensors", f"{facts['tensors']}, {mebibytes(facts['tensor_bytes'])}"),
        ("nodes", f"{facts['nodes']}, {facts['functions']} functions"),
        ("operators", ", ".join(counts)),
        ("random", listed(facts["random_operators"])),
        ("custom domain", listed(facts["custom_domains"])),
        ("dynamic shape", listed(list(facts["data_dependent_operators"]))),
        *((label, metadata[key]) for key, label in _SHOWN_METADATA.items() if key in metadata),
    )


def _signature(facts: dict[str, Any]) -> tuple[tuple[str, str, str], ...]:
    return tuple(
        (f"{kind} {value['name']}", value["type"], f"[{listed(value['shape'])}]")
        for kind in ("input", "output")
        for value in facts[f"{kind}s"]
    )


def _notes(facts: dict[str, Any], thresholds: dict[int, float]) -> tuple[str, ...]:
    notes = []
    if facts["metadata"] is None:
        notes.append("foreign model: no svit-deploy metadata")
    if facts["random_operators"]:
        notes.append("it draws random numbers: two runs on one image may differ")
    if facts["custom_domains"]:
        notes.append("it needs operators that are not standard ONNX")
    if facts["data_dependent_operators"]:
        notes.append("its shapes depend on the image: no CUDA graph can capture it")
    recorded = _recorded_thresholds(facts["metadata"] or {})
    for gate in sorted(thresholds.keys() & recorded.keys()):
        if np.float32(recorded[gate]) != np.float32(thresholds[gate]):
            notes.append(
                f"gate {gate} was exported with threshold {number(recorded[gate])}, "
                f"the graph has {number(thresholds[gate])}"
            )
    return tuple(notes)


def _recorded_thresholds(metadata: Mapping[str, str]) -> dict[int, float]:
    """What our metadata says, which anyone may have written."""
    try:
        gates = json.loads(metadata.get("gates", "[]"))
        known = (gate for gate in gates if gate["threshold"] is not None)
        return {int(gate["gate"]): float(gate["threshold"]) for gate in known}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return {}
