"""Which part of a model an operator belongs to, by the names that the graph writer gives.

Names are paths of scopes with the operator last, `block_3/attention/MatMul_1`; runtimes change
their ends, and join those of what they fuse. Scopes tell the block, the operator's type what it
does. Names of other writers tell nothing, and their operators are assigned as far as types go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

LINEAR, ATTENTION, SOFTMAX, NORMS = "linear products", "attention products", "softmax", "norms"
ELEMENTS, SELECTION, MOVES = "element-wise", "gates and selection", "moves of rows"
OTHER, BETWEEN = "other", "between operators"
KINDS = (LINEAR, ATTENTION, SOFTMAX, NORMS, ELEMENTS, SELECTION, MOVES, OTHER, BETWEEN)
"""What operators do. Moves compute nothing: gathers, transposes, copies."""

_BLOCK = re.compile(r"block_(\d+)")
_SECTIONS = re.compile(
    r"embedding|head|gate_outputs|merge|pyramid|geometry|injector_\d+|extractor_\d+|features|fpn|"
    r"rpn|box_head|mask_head"
)
_SELECTING = {"gate", "select", "gate_outputs", "pool"}
_SELECTING_IN_BLOCK = {"merge"}
_TYPES = {
    LINEAR: "Gemm FusedGemm Conv FusedConv ConvTranspose FullyConnected Convolution Deconvolution "
    "GroupConvolution QGemm QLinearMatMul QLinearConv MatMulInteger MatMulIntegerToFloat "
    "DynamicQuantizeMatMul",
    ATTENTION: "MultiHeadAttention Attention ScaledDotProductAttention fused_attention",
    SOFTMAX: "Softmax SoftMax",
    NORMS: "LayerNormalization SkipLayerNormalization SimplifiedLayerNormalization MVN "
    "BatchNormalization BatchNormInference MulAdd Normalization",
    ELEMENTS: "Gelu FastGelu BiasGelu QuickGelu Relu HardSwish Sigmoid Tanh Erf Add Sub Mul Div "
    "Multiply Subtract Divide Eltwise Where Select Cast Convert Sqrt Exp Clip Subgraph "
    "ElementWise Pow Max Min Maximum Minimum QuantizeLinear DequantizeLinear FakeQuantize",
    MOVES: "Gather GatherND GatherElements ScatterND ScatterElements ScatterNDUpdate Transpose "
    "Reshape Reorder ReorderInput ReorderOutput Concat Split Slice StridedSlice Squeeze Unsqueeze "
    "Expand Broadcast Pad Tile Shape ShapeOf Identity Reformat MemcpyFromHost MemcpyToHost Shuffle "
    "Flatten Concatenation",
}
_KIND_OF = {name: kind for kind, names in _TYPES.items() for name in names.split()}
_PRODUCTS = {"MatMul", "FusedMatMul", "TransposeMatMul", "Gemm_MatMul", "MatrixMultiply"}
_ORDER = (LINEAR, ATTENTION, SOFTMAX, NORMS, ELEMENTS, MOVES)
"""What a fused operator counts as: the first that it does."""


def block_of(names: Iterable[str]) -> str | None:
    """`block 3`, or the part of the model beside its blocks; None where names do not tell.

    Args:
        names: of the graph's nodes that an operator stands for.
    """
    found = {place for name in names if (place := _place(name))}
    return found.pop() if len(found) == 1 else None


def _place(name: str) -> str | None:
    scopes = name.split("/")[:-1]
    for scope in scopes[:1]:
        if block := _BLOCK.fullmatch(scope):
            return f"block {block[1]}"
        if _SECTIONS.fullmatch(scope):
            return scope.replace("_", " ")
    return None


def kind_of(names: Sequence[str], operator: str) -> str:
    """What an operator does, of `KINDS`.

    Args:
        names: of the graph's nodes that it stands for.
        operator: its type, as the runtime calls it.
    """
    if operator == BETWEEN:
        return BETWEEN
    ours = [name for name in names if _place(name)]
    if ours and all(map(_selects, ours)):
        return SELECTION
    types = {operator, *(part for name in ours for part in _types_in(name))}
    kinds = {_KIND_OF[name] for name in types if name in _KIND_OF}
    if types & _PRODUCTS and ours:
        kinds.add(ATTENTION if any("attention" in name.split("/") for name in ours) else LINEAR)
    return next((kind for kind in _ORDER if kind in kinds), OTHER)


def _selects(name: str) -> bool:
    scopes = set(name.split("/")[:-1])
    in_block = _BLOCK.match(name) is not None
    return bool(scopes & _SELECTING or (in_block and scopes & _SELECTING_IN_BLOCK))


def _types_in(name: str) -> Iterable[str]:
    """The operators' types that a name ends with, without their numbers."""
    return (re.sub(r"(_\d+|_nchwc)+$", "", part) for part in name.split("/")[1:])
