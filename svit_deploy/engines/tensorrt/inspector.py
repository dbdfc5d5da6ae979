"""What the layers of an engine tell: whether attention is one kernel, and what is multiplied.

TensorRT's inspector gives JSON: `{"Layers": [...]}`. An engine built with detailed verbosity has an
object for each layer (Name, LayerType, Inputs, Outputs, TacticName, Metadata with the ONNX nodes it
came from), another one a name. With verbosity `none` there are no layers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from svit_deploy.engines.settings import floats_of

_FUSED = re.compile(r"(?<![a-z0-9])f?mha(?![a-z])", re.IGNORECASE)
_REFORMAT = re.compile(r"reformat|reorder", re.IGNORECASE)
_HOST_COPY = re.compile(r"DeviceTo(Shape)?HostCopy", re.IGNORECASE)
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_EIGHT_BITS = re.compile(r"Data[Tt]ype\W+(FP8|Int8)\b")
_OWN_END = re.compile(r"_myl\d+_\d+$")
_LINE = re.compile(
    r"Name: (?P<Name>.*?), LayerType: (?P<LayerType>[^,]*),"
    r"(?: Inputs: (?P<Inputs>.*?), Constants:)?"
    r"(?:.*? TacticName: (?P<TacticName>[^,]*),)?(?:.*? Metadata: (?P<Metadata>.*)|.*)"
)


@dataclass(frozen=True)
class LayerCounts:
    """How many layers of which kind an engine has.

    Attributes:
        fused_attention: kernels that compute scores, softmax and mixing at once.
        reformats: copies into another memory layout.
        host_copies: sizes copied to the host, which waits for them in the middle of a run.
        quantised: linear layers of the graph that are given numbers of eight bits; several may be
            one product.
    """

    total: int
    fused_attention: int
    reformats: int
    host_copies: int
    quantised: int = 0

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def read_layers(information: str) -> LayerCounts | None:
    """Counts the layers in the inspector's JSON; None where it tells of none."""
    try:
        layers = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError):
        return None
    return _count(layers) if isinstance(layers, list) else None


def read_layer_lines(text: str) -> LayerCounts | None:
    """Counts the layers in the list that a builder logs; None if it is none.

    The same layers as in the inspector's JSON, for all profiles, one line each.
    """
    layers = [_LINE.fullmatch(line) for line in text.splitlines()]
    return _count([layer.groupdict("") for layer in layers if layer])


def _count(layers: list[Any]) -> LayerCounts | None:
    if not layers:
        return None
    return LayerCounts(
        total=len(layers),
        fused_attention=sum(map(is_fused_attention, layers)),
        reformats=sum(map(is_reformat, layers)),
        host_copies=sum(_HOST_COPY.search(_text(layer, "Name")) is not None for layer in layers),
        quantised=sum(map(quantised_layers, layers)),
    )


def quantised_layers(layer: Any) -> int:
    """How many linear layers of the graph a layer computes of numbers of eight bits."""
    if not _EIGHT_BITS.search(_text(layer, "Inputs")):
        return 0
    nodes = _NODE.findall(_text(layer, "Metadata"))
    return sum(node.rpartition("/")[2].startswith("Gemm") for node in nodes)


def is_fused_attention(layer: Any) -> bool:
    """Whether a layer is a fused attention kernel.

    Such kernels have `mha` or `fmha` for a word of their name or tactic, as in
    `_gemm_mha_v2_myl0_4` or `fmha_v2_flash_attention_fp16`. The word attention proves nothing: the
    names of ONNX nodes, which unfused layers take over, are full of it.
    """
    name = _text(layer, "Name")
    nodes = _NODE.findall(_text(layer, "Metadata"))
    named_after_node = "/" in name or any(node and node in name for node in nodes)
    own = "" if named_after_node else name
    return _FUSED.search(f"{own} {_text(layer, 'TacticName')}") is not None


def layer_nodes(information: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """The ONNX nodes that each layer came from, and its type, by the layer's name.

    Where the engine does not tell, the name does: fused layers have their nodes' names with a +
    between them. The type of a fused attention is `fused_attention`.

    Args:
        information: the inspector's JSON.
    """
    try:
        layers = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError):
        layers = []
    found = {}
    for layer in layers if isinstance(layers, list) else []:
        name, nodes = _text(layer, "Name"), _NODE.findall(_text(layer, "Metadata"))
        kind = "fused_attention" if is_fused_attention(layer) else _text(layer, "LayerType")
        found[name] = tuple(nodes) or nodes_in(name), kind
    return found


def nodes_in(name: str) -> tuple[str, ...]:
    """The ONNX nodes that a layer's name is made of."""
    parts = (_OWN_END.sub("", part.strip()) for part in name.split("+"))
    return tuple(part for part in parts if part)


def is_reformat(layer: Any) -> bool:
    """Whether a layer only copies a tensor into another memory layout."""
    kind = f"{_text(layer, 'LayerType')} {_text(layer, 'ParameterType')}"
    return _REFORMAT.search(kind) is not None or _text(layer, "Name").startswith("Reformatting ")


def fusion_notes(
    layers: Mapping[str, Any] | None,
    attentions: int,
    quantised: int,
    *,
    precision: str,
    head_dim: int,
    tokens: str,
) -> list[str]:
    """What a builder did not fuse, a sentence each; see `attention_note` and `quantised_note`.

    Args:
        layers: `LayerCounts` of the engine as a sidecar holds them, None where it does not tell.
        attentions, quantised: how many of each the graph has.
    """
    counts = LayerCounts(**layers) if layers else None
    notes = (
        attention_note(counts, attentions, precision=precision, head_dim=head_dim, tokens=tokens),
        quantised_note(counts, quantised),
    )
    return [note for note in notes if note is not None]


def attention_note(
    counts: LayerCounts | None, expected: int, *, precision: str, head_dim: int, tokens: str
) -> str | None:
    """One sentence where attention is not fused everywhere, or nobody can tell; else None.

    Args:
        counts: of the engine's layers.
        expected: attentions in the model: its depth.
        precision, head_dim, tokens: of the graph, for the likely reason.
    """
    if counts is None:
        return "the engine does not tell its layers, so it is not known whether attention is fused"
    if counts.fused_attention >= expected:
        return None
    if floats_of(precision) == "fp32":
        reason = "fused kernels take fp16 or bf16, export with --precision fp16"
    elif not 16 <= head_dim <= 256 or head_dim % 8:
        reason = f"they take head sizes from 16 to 256 in steps of 8, not {head_dim}"
    elif tokens == "dynamic":
        reason = "sizes that depend on the data; --tokens budget has none"
    else:
        reason = "this TensorRT does not know the pattern on this GPU, try a newer one"
    return f"{counts.fused_attention} of {expected} attentions are fused; likely reason: {reason}"


def quantised_note(counts: LayerCounts | None, expected: int) -> str | None:
    """One sentence where a builder widened quantised layers, if it tells; else None.

    Args:
        expected: quantised linear layers of the graph.
    """
    if counts is None or counts.quantised >= expected:
        return None
    return (
        f"{counts.quantised} of {expected} quantised linear layers multiply numbers of eight bits"
    )


def _text(layer: Any, key: str) -> str:
    """A field of a layer; a layer that is only a name has no others."""
    if isinstance(layer, dict):
        return str(layer.get(key, ""))
    return str(layer) if key == "Name" else ""
