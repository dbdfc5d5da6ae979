"""Reading ONNX files that nobody vouches for, and what to look for in them.

Nothing here runs a model. External data is refused rather than followed: the bundles of this
package hold their weights in one file, and links out of a model file have been an attack more
than once (CVE-2022-25882, CVE-2024-27318, CVE-2026-27489, CVE-2026-34446).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from svit_deploy.errors import InputError

RANDOM_OPERATORS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
     "Bernoulli"}
)  # fmt: skip
MAX_BYTES = 2**31 - 1
METADATA_PREFIX = "svit_deploy."


def load_onnx(path: Path) -> onnx.ModelProto:
    """Parses an ONNX file, without looking at any other file.

    Raises:
        InputError: missing, not ONNX, truncated, too large, or with weights in other files.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "does not exist"
        raise InputError(f"ONNX file {path} {kind}", "give the path of an .onnx file")
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"ONNX file {path} is empty", "export or download it again")
    if size > MAX_BYTES:
        raise InputError(
            f"ONNX file {path} has {size} bytes, more than the 2 GiB a protobuf may have",
            "export a smaller model",
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:
        raise InputError(
            f"{path} is not an ONNX model or is cut short", "export or download it again"
        ) from error
    if not model.graph.node or not model.opset_import:
        raise InputError(f"{path} holds no ONNX graph", "export or download it again")
    refuse_external_data(model, path)
    return model


def refuse_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Raises InputError when any tensor of the model lives in another file."""
    for tensor in all_tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            location = {entry.key: entry.value for entry in tensor.external_data}.get("location")
            raise InputError(
                f"{path} keeps tensor {tensor.name!r} in another file ({location!r}), "
                "which is not followed",
                "save the model as one file (onnx.save with save_as_external_data=False)",
            )


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, those inside control flow and functions included."""
    pending = [*model.graph.node, *(node for f in model.functions for node in f.node)]
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                pending.extend(graph.node)


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in the model: initializers (sparse ones too) and constants."""
    graphs = [model.graph]
    for node in all_nodes(model):
        for attribute in node.attribute:
            graphs.extend(graph for graph in (attribute.g, *attribute.graphs) if graph.node)
            yield from (t for t in (attribute.t, *attribute.tensors) if t.name or t.dims)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)


def random_operators(model: onnx.ModelProto) -> list[str]:
    """`name (type)` of every operator that draws random numbers."""
    found = (node for node in all_nodes(model) if node.op_type in RANDOM_OPERATORS)
    dropout = (node for node in all_nodes(model) if node.op_type == "Dropout")
    names = [f"{node.name or node.output[0]} ({node.op_type})" for node in found]
    return sorted(
        names + [f"{node.name} (Dropout in training mode)" for node in dropout if _trains(node)]
    )


def _trains(dropout: onnx.NodeProto) -> bool:
    """Whether a Dropout's training_mode input is connected (a constant false is never written)."""
    return len(dropout.input) > 2 and bool(dropout.input[2])


def custom_domains(model: onnx.ModelProto) -> list[str]:
    """Operator domains beyond the ONNX standard that no function body of the file covers."""
    defined = {(function.domain, function.name) for function in model.functions}
    return sorted(
        {
            node.domain
            for node in all_nodes(model)
            if node.domain not in ("", "ai.onnx") and (node.domain, node.op_type) not in defined
        }
    )


def read_metadata(model: onnx.ModelProto) -> dict[str, str]:
    """The `svit_deploy.*` entries of metadata_props, prefix removed; empty for a foreign file."""
    return {
        entry.key.removeprefix(METADATA_PREFIX): entry.value
        for entry in model.metadata_props
        if entry.key.startswith(METADATA_PREFIX)
    }
