"""Reading the inspector's JSON, in the shapes that TensorRT 10, 11 and each verbosity give it."""

from __future__ import annotations

import json

import pytest

from svit_deploy.engines.tensorrt.inspector import (
    LayerCounts,
    attention_note,
    is_fused_attention,
    is_reformat,
    quantised_note,
    read_layer_lines,
    read_layers,
)


def layer(name: str, kind: str = "kgen", tactic: str = "", nodes: tuple[str, ...] = (), **more):
    """A layer as the inspector describes it at detailed verbosity."""
    tensor = {"Name": "x", "Location": "Device", "Format/Datatype": "Half", "Dimensions": [-1, 6]}
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor],
        "Outputs": [tensor],
        "TacticName": tactic,
        "StreamId": 0,
        "Metadata": "".join(f"[ONNX Layer: {node}]" for node in nodes),
        **more,
    }


BLOCK = [
    layer("block_0.attention.Gemm_4", "gemm", "sm80_xmma_gemm_f16f16", ("block_0.Gemm_4",)),
    layer("__myl_ReshTran_myl0_2"),
    layer(
        "_gemm_mha_v2_myl0_3",
        tactic="_gemm_mha_v2_0xbcebb264ff01c4c4f8078856729f8b7e",
        nodes=("block_0.attention.MatMul_7", "block_0.attention.Softmax_8"),
    ),
]
UNFUSED = [
    layer("block_0.attention.MatMul_7", "gemm", "sm80_xmma_gemm_f16f16", ("attention.MatMul_7",)),
    layer("__myl_MaxrSubExpSumDivMul_myl0_4", nodes=("block_0.attention.Softmax_8",)),
]
REFORMAT = layer(
    "Reformatting CopyNode for Input Tensor 0 to conv",
    "Reformat",
    ParameterType="Reformat",
    Origin="REFORMAT",
)
HOST_COPY = layer("/NonZero[size][DevicetoShapeHostCopy]", "DeviceToShapeHost")


def test_counts_of_a_detailed_engine():
    layers = [*BLOCK, *BLOCK, REFORMAT, HOST_COPY]
    for more in ({"Bindings": ["images", "logits"]}, {"I/O Tensors": [{"Name": "images"}]}):
        counts = read_layers(json.dumps({"Layers": layers, **more}))
        assert counts == LayerCounts(total=8, fused_attention=2, reformats=1, host_copies=1)
    assert counts.to_dict() == {
        "total": 8, "fused_attention": 2, "reformats": 1, "host_copies": 1, "quantised": 0
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["FP8", "Int8"])
def test_linear_layers_of_eight_bits(kind):
    """As TensorRT-RTX tells of them: queries, keys and values in one product."""

    def product(given: str, *nodes: str) -> dict[str, object]:
        inputs = [{"Name": "x", "Dimensions": [-1, 24], "Datatype": given}]
        return layer("__myl_Gemm_myl0_4", "gemm", nodes=nodes) | {"Inputs": inputs}

    qkv = [f"block_0/attention/{name}" for name in ("Gemm", "Gemm_1", "Gemm_2", "Dequantize")]
    layers = [
        product(kind, *qkv),
        product(kind, "block_0/mlp/Gemm"),
        product("Float", "block_0/mlp/Gemm_1"),
        product(kind, "block_0/mlp/Reshape"),
    ]
    counts = read_layers(json.dumps({"Layers": layers}))
    assert counts.quantised == 4
    lines = [
        f"Name: {one['Name']}, LayerType: gemm, Inputs: [ {{ Name: x, Dimensions: [-1,24], "
        f"Datatype: {one['Inputs'][0]['Datatype']}, Format: (Linear) }}], Constants: [ {{ Name: w, "
        f"Datatype: {kind} }}], Outputs: [], TacticName: , StreamId: 0, Metadata: {one['Metadata']}"
        for one in layers
    ]
    assert read_layer_lines("\n".join(lines)) == counts
    assert quantised_note(counts, 4) is None
    assert quantised_note(counts, 5).startswith("4 of 5 quantised linear layers multiply")
    assert quantised_note(None, 5) is None  # attention_note tells of that


def test_counts_of_names_alone():
    names = [one["Name"] for one in (*BLOCK, *UNFUSED, REFORMAT, HOST_COPY)]
    counts = read_layers(json.dumps({"Layers": names, "Bindings": []}))
    assert counts == LayerCounts(total=7, fused_attention=1, reformats=1, host_copies=1)


def test_counts_of_the_list_that_a_builder_logs():
    tensors = "Inputs: [ { Name: x, Dimensions: [1,3] }], Constants: [], Outputs: [ { Name: y }]"

    def line(name, kind, tactic, nodes):
        told = f"LayerType: {kind}, {tensors}, TacticName: {tactic}, StreamId: 0, Metadata: {nodes}"
        return f"Name: {name}, {told}"

    lines = [
        "Layers:",
        line("_gemm_mha_v2_myl0_7", "kgen", "_gemm_mha_v2_0x5e", "[ONNX Layer: block_0/MatMul]"),
        line("block_0/Gemm_1+block_0/Gemm_myl0_2", "gemm", "", "[ONNX Layer: block_0/Gemm]"),
        f"Name: block_3:5[DevicetoShapeHostCopy], LayerType: DeviceToShapeHost, {tensors}",
        line("Reformatting CopyNode for x", "Reformat", "0x3e8", ""),
        "",
        "I/O Tensors:",
        " Name: images, IOMode: Input, DataType: Float, Location: Device",
    ]
    counts = LayerCounts(total=4, fused_attention=1, reformats=1, host_copies=1)
    assert read_layer_lines("\n".join(lines)) == counts
    assert read_layer_lines("") is None
    assert read_layer_lines("\n".join(lines[5:])) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"Layers": []}', '{"Layers": "none"}'])
def test_an_engine_that_tells_nothing(text):
    assert read_layers(text) is None


@pytest.mark.parametrize(
    "name",
    [
        "_gemm_mha_v2_myl0_172",
        "__mye8037_gemm_mha_v2",
        "_gemv_mha_v1",
        "fmha_v2_flash_attention_fp16_S_40_sm86_kernel",
        "sm80_fMHA",
    ],
)
def test_fused_kernels_by_name_or_tactic(name):
    assert is_fused_attention(layer(name))
    assert is_fused_attention(name)
    assert is_fused_attention(layer("__myl_Fused_myl0_1", tactic=name))


@pytest.mark.parametrize(
    "name",
    [
        "block_3.attention.softmax",
        "/encoder/mha/MatMul",
        "__myl_MaxrSubExpSumDivMul_myl0_4",
        "[SHUFFLE]_[scaled_dot_product_attention]_[x11_qkv]",
        "alphamhabeta",
    ],
)
def test_what_is_named_after_attention_is_not_fused(name):
    assert not is_fused_attention(layer(name))
    assert not is_fused_attention(name)


def test_a_name_taken_over_from_a_node_proves_nothing():
    node = layer("encoder.mha.proj", "gemm", "sm80_xmma_gemm", ("encoder.mha.proj",))
    assert not is_fused_attention(node)
    assert is_fused_attention(node | {"TacticName": "_gemm_mha_v2_0x1"})


def test_reformats():
    assert is_reformat(REFORMAT)
    assert is_reformat("Reformatting CopyNode for Output Tensor 0 to {ForeignNode[...]}")
    assert is_reformat(layer("x", "reorder"))
    assert not is_reformat(BLOCK[0])


@pytest.mark.parametrize(
    ("fused", "graph", "sentence"),
    [
        (12, {}, None),
        (13, {}, None),
        (11, {}, "11 of 12 attentions are fused; likely reason: this TensorRT does not know"),
        (0, {"precision": "fp32"}, "0 of 12 attentions are fused; likely reason: fused kernels ta"),
        (0, {"head_dim": 12}, "head sizes from 16 to 256 in steps of 8, not 12"),
        (0, {"head_dim": 264}, "not 264"),
        (0, {"tokens": "dynamic"}, "sizes that depend on the data; --tokens budget has none"),
    ],
)
def test_one_sentence_where_fusion_was_lost(fused, graph, sentence):
    counts = LayerCounts(total=99, fused_attention=fused, reformats=0, host_copies=0)
    found = attention_note(
        counts, 12, **{"precision": "fp16", "head_dim": 64, "tokens": "budget"} | graph
    )
    assert found is None if sentence is None else sentence in found


def test_one_sentence_where_nobody_can_tell():
    found = attention_note(None, 12, precision="fp16", head_dim=64, tokens="dense")
    assert found == (
        "the engine does not tell its layers, so it is not known whether attention is fused"
    )
