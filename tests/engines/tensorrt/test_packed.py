"""Rewriting padded attention into attention on packed rows."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from svit_deploy.engines.tensorrt.packed import has_packed_attention, pack_attention
from svit_deploy.machine.tensorrt import ENTERPRISE, Library
from tests.engines.tensorrt.fake import make_module
from tests.engines.tensorrt.fake.builder import Network
from tests.engines.tensorrt.fake.runtime import DataType

WIDTH, HEADS = 8, 2


class Logger:
    def log(self, severity, message):
        raise AssertionError(message)


def parse(library: Library, path) -> Network:
    trt = library.trt
    builder = trt.Builder(Logger())
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, Logger()).parse_from_file(str(path))
    return network


@pytest.fixture
def library() -> Library:
    return Library(ENTERPRISE, make_module("11.4.0.106"))


@pytest.fixture
def blocks(graph):
    """Writes a graph of blocks 0 and 3, of which some parts may have no name."""

    def write(dtype=TensorProto.FLOAT16, unnamed=()):
        nodes, values, x = [], [], "images"
        for block in (0, 3):
            parts = [f"block_{block}.{part}" for part in ("query", "key", "value", "lengths")]
            parts = [f"{part}_x" if part in unnamed else part for part in parts]
            nodes += [helper.make_node("Relu", [x], [part]) for part in parts]
            x = f"block_{block}.mixed"
            nodes.append(helper.make_node("Sum", parts[:3], [x], name=f"padded {block}"))
            nodes.append(helper.make_node("Relu", [x], [f"block_{block}.out"]))
            values += [helper.make_tensor_value_info(part, dtype, ["T", WIDTH]) for part in parts]
            x = f"block_{block}.out"
        nodes.append(helper.make_node("Sum", [x, "block_3.mixed"], ["logits"]))
        return graph(*nodes, values=values)

    return write


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_every_block_that_names_its_tensors_is_packed(library, blocks, dtype):
    network = parse(library, blocks(dtype))
    parsed = list(network.layers)
    assert pack_attention(library, network, HEADS) == 2
    read = {tensor.name for layer in parsed for tensor in layer.inputs}
    assert not {"block_0.mixed", "block_3.mixed"} & read
    attentions = [
        layer.outputs[0].attention for layer in network.layers if layer.outputs[0].attention
    ]
    packed = library.trt.AttentionIOForm.PACKED_NHD
    assert [(a.query_form, a.key_value_form, a.decomposable) for a in attentions] == [
        (packed, packed, True)
    ] * 2
    assert [a.query_lengths.name for a in attentions] == ["block_0.lengths", "block_3.lengths"]
    assert all(a.key_value_lengths is a.query_lengths for a in attentions)
    wanted = DataType.HALF if dtype == TensorProto.FLOAT16 else DataType.FLOAT
    casts = [layer for layer in network.layers if layer.type == "CAST"]
    assert [layer.outputs[0].dtype for layer in casts] == [wanted] * len(casts)
    assert len(casts) == (2 if wanted is DataType.HALF else 0)


def test_what_goes_in_and_out_of_attention(library, blocks):
    network = parse(library, blocks())
    parsed = len(network.layers)
    pack_attention(library, network, HEADS)
    added = network.layers[parsed:][: (len(network.layers) - parsed) // 2]  # of the first block
    kinds = [layer.type for layer in added]
    attention_kind = library.trt.LayerType.ATTENTION_INPUT
    split = added[:3]
    assert kinds == ["SHUFFLE"] * 3 + ["CONSTANT", "CAST", "ELEMENTWISE", attention_kind, "SHUFFLE"]
    assert [layer.inputs[0].name for layer in split] == [
        "block_0.query", "block_0.key", "block_0.value"
    ]  # fmt: skip
    assert [layer.reshape_dims for layer in split] == [(-1, HEADS, WIDTH // HEADS)] * 3
    product, attention, joined = added[5:]
    assert product.inputs[0] is split[0].outputs[0]
    assert attention.inputs == [product.outputs[0], split[1].outputs[0], split[2].outputs[0]]
    assert joined.inputs == attention.outputs
    assert joined.reshape_dims == (-1, WIDTH)
    (scale,) = added[3].weights
    assert scale == (WIDTH // HEADS) ** -0.5
    reader = next(layer for layer in network.layers if layer.outputs[0].name == "block_0.out")
    assert reader.inputs == joined.outputs


def test_a_block_without_all_names_stays_padded(library, blocks):
    network = parse(library, blocks(unnamed=["block_3.lengths"]))
    assert pack_attention(library, network, HEADS) == 1
    read = {tensor.name for layer in network.layers for tensor in layer.inputs}
    assert "block_3.mixed" in read
    assert "block_0.mixed" not in read


def test_without_heads_or_such_attention_nothing_changes(library, blocks):
    for found, heads in ((library, 0), (Library(ENTERPRISE, make_module("10.16.1")), HEADS)):
        network = parse(found, blocks())
        count = network.num_layers
        assert pack_attention(found, network, heads) == 0
        assert network.num_layers == count


@pytest.mark.parametrize(
    ("version", "name", "expected"),
    [
        ("10.3.0", "tensorrt", False),
        ("10.16.1", "tensorrt", False),
        ("11.4.0", "tensorrt", True),
        ("1.7.1", "tensorrt_rtx", True),
    ],
)
def test_who_has_it(version, name, expected):
    assert has_packed_attention(Library(ENTERPRISE, make_module(version, name))) is expected
