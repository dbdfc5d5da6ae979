"""Reading ONNX files that nobody vouches for, and what to look for in them.

Nothing here runs a model. External data is refused rather than followed: the bundles of this
package hold their weights in one file, and links out of a model file have been an attack more
than once (CVE-2022-25882, CVE-2024-27318, CVE-2026-27489, CVE-2026-34446).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import NodeProto, TensorProto

from svit_deploy.errors import InputError
from svit_deploy.io.files import reading

RANDOM_OPERATORS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
     "Bernoulli"}
)  # fmt: skip
# The shapes of their results depend on values: no CUDA graph, and a wait for the device.
DATA_DEPENDENT = frozenset(
    {"Compress", "If", "Loop", "NonMaxSuppression", "NonZero", "StringSplit", "Unique"}
)
STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
MAX_BYTES = 2**31 - 1
METADATA_PREFIX = "svit_deploy."

_AGAIN = "export or download it again"


def load_onnx(path: Path) -> onnx.ModelProto:
    """Parses an ONNX file, without looking at any other file.

    Raises:
        InputError: missing, not ONNX, truncated, too large, or with weights in other files.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "is not a file"
        raise InputError(
            f"ONNX file {path} {kind if path.exists() else 'does not exist'}",
            "give the path of an .onnx file",
        )
    if (size := path.stat().st_size) > MAX_BYTES:
        raise InputError(
            f"ONNX file {path} has {size} bytes, more than the 2 GiB a protobuf may have",
            "export a smaller model",
        )
    with reading(path):
        content = path.read_bytes()
    if not content:
        raise InputError(f"ONNX file {path} is empty", _AGAIN)
    if content.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a git-LFS pointer, not the model", "run git lfs pull")
    if content[:64].lstrip().startswith(b"<"):
        raise InputError(
            f"{path} is a web page, not an ONNX model", "the download led to a page: fetch the file"
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's own; which one depends on its implementation
        reason = (
            "nests too deeply" if "MaxDepth" in str(error) else "is cut short, or nests too deeply"
        )
        raise InputError(f"{path} is not an ONNX model or {reason}", _AGAIN) from None
    if not model.graph.node or not model.opset_import:
        raise InputError(f"{path} holds no ONNX graph", _AGAIN)
    if not _is_text_utf8(model):
        raise InputError(f"{path} holds names that are not UTF-8", _AGAIN)
    refuse_external_data(model, path)
    return model


def refuse_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Raises InputError when any tensor of the model lives in another file."""
    for tensor in all_tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            location = {entry.key: entry.value for entry in tensor.external_data}.get("location")
            raise InputError(
                f"{path} keeps tensor {tensor.name!r:.80} in another file ({location!r:.80}), "
                "which is not followed",
                "save the model as one file (onnx.save with save_as_external_data=False)",
            )


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, those inside control flow, functions and training graphs included."""
    return (message for message in _all_messages(model) if isinstance(message, NodeProto))


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in the model: initializers, constants, defaults of functions, ..."""
    return (message for message in _all_messages(model) if isinstance(message, TensorProto))


def _all_messages(model: onnx.ModelProto) -> Iterator[Any]:
    """Every protobuf message, wherever it stands.

    Going by the schema rather than by a list of places leaves none out, today's or tomorrow's.
    """
    pending: list[Any] = [model]
    while pending:
        message = pending.pop()
        yield message
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                pending.extend([value] if hasattr(value, "ListFields") else value)


def _is_text_utf8(model: onnx.ModelProto) -> bool:
    """Whether all strings are; protobuf lets others pass and gives them as bytes."""
    return not any(
        isinstance(text, bytes)
        for message in _all_messages(model)
        for field, value in message.ListFields()
        if field.type == field.TYPE_STRING
        for text in ([value] if isinstance(value, str | bytes) else value)
    )


def random_operators(model: onnx.ModelProto) -> list[str]:
    """`name (type)` of every operator that draws random numbers."""
    found = []
    for node in all_nodes(model):
        name = (node.name or ", ".join(node.output))[:80]
        if node.op_type in RANDOM_OPERATORS:
            found.append(f"{name} ({node.op_type})")
        # An exporter that means inference leaves the third input, training_mode, out.
        elif node.op_type == "Dropout" and any(node.input[2:]):
            found.append(f"{name} (Dropout in training mode)")
    return sorted(found)


def custom_domains(model: onnx.ModelProto) -> list[str]:
    """Operator domains beyond the ONNX standard that no function body of the file covers."""
    defined = {(function.domain, function.name) for function in model.functions}
    return sorted(
        {
            node.domain
            for node in all_nodes(model)
            if node.domain not in STANDARD_DOMAINS and (node.domain, node.op_type) not in defined
        }
    )


def read_metadata(model: onnx.ModelProto) -> dict[str, str]:
    """The `svit_deploy.*` entries of metadata_props, prefix removed; empty for a foreign file."""
    return {
        entry.key.removeprefix(METADATA_PREFIX): entry.value
        for entry in model.metadata_props
        if entry.key.startswith(METADATA_PREFIX)
    }
