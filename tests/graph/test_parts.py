"""Operators are assigned by the names of their nodes, as the runtimes change them."""

from __future__ import annotations

import pytest

from svit_deploy.graph import parts
from svit_deploy.graph.parts import BETWEEN, block_of, kind_of


@pytest.mark.parametrize(
    ("names", "operator", "block", "kind"),
    [
        (["block_3/attention/Gemm_1"], "Gemm", "block 3", parts.LINEAR),
        (["block_11/attention/MatMul/MatMulScaleFusion/"], "FusedMatMul", "block 11",
         parts.ATTENTION),
        (["block_3/mlp/Gemm", "block_3/mlp/Gelu"], "FullyConnected", "block 3", parts.LINEAR),
        (["block_3/mlp/Gelu"], "Gelu", "block 3", parts.ELEMENTS),
        (["block_3/attention/Softmax"], "Softmax", "block 3", parts.SOFTMAX),
        (["block_0/attention/Transpose", "block_0/attention/MatMul", "block_0/attention/Softmax"],
         "Subgraph", "block 0", parts.ATTENTION),
        (["Multiply_51", "block_0/mlp/LayerNormalization"], "MulAdd", "block 0", parts.NORMS),
        (["block_3/gate/Gemm"], "Gemm", "block 3", parts.SELECTION),
        (["block_3/select/CumSum_1"], "CumSum", "block 3", parts.SELECTION),
        (["block_3/gate/LayerNormalization"], "MVN", "block 3", parts.SELECTION),
        (["block_3/merge/MatMul"], "MatMul", "block 3", parts.SELECTION),
        (["merge/Gemm"], "Gemm", "merge", parts.LINEAR),
        (["gate_outputs/Concat"], "Concat", "gate outputs", parts.SELECTION),
        (["block_3/ScatterND"], "ScatterND", "block 3", parts.MOVES),
        (["embedding/Conv_nchwc"], "Conv", "embedding", parts.LINEAR),
        (["head/Gemm"], "", "head", parts.LINEAR),
        (["block_3/mlp/Gemm", "block_4/attention/Gemm"], "kgen", None, parts.LINEAR),
        (["ReorderOutput"], "ReorderOutput", None, parts.MOVES),
        (["/blocks.3/attn/qkv/MatMul"], "MatMul", None, parts.OTHER),
        (["block_3/attention/Unheard"], "Unheard", "block 3", parts.OTHER),
        ([], "", None, parts.OTHER),
        ([], BETWEEN, None, BETWEEN),
    ],
)  # fmt: skip
def test_places(names, operator, block, kind):
    assert block_of(names) == block
    assert kind_of(names, operator) == kind
