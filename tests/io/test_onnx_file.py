"""Looking into ONNX files: every node and tensor is found, wherever the format allows one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper

from svit_deploy.errors import InputError
from svit_deploy.graph.edit import read_scalar
from svit_deploy.io.onnx_file import (
    all_nodes,
    all_tensors,
    custom_domains,
    load_onnx,
    random_operators,
    read_metadata,
)

X, Y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")


def tensor(name: str = "needle") -> onnx.TensorProto:
    return helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0])


def graph(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "g", [X], [Y])


def model(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    return helper.make_model(graph(*nodes), opset_imports=opsets)


RELU = helper.make_node("Relu", ["x"], ["y"], name="relu")


def in_branch(node: onnx.NodeProto, depth: int = 1) -> onnx.NodeProto:
    """A node inside `depth` nested branches."""
    for _ in range(depth):
        node = helper.make_node(
            "If", ["c"], ["y"], then_branch=graph(node), else_branch=graph(RELU)
        )
    return node


def with_function(node: onnx.NodeProto) -> onnx.ModelProto:
    function = helper.make_function("own", "F", ["x"], ["y"], [node], [helper.make_opsetid("", 20)])
    whole = model(helper.make_node("F", ["x"], ["y"], domain="own"))
    whole.functions.append(function)
    return whole


def with_training(node: onnx.NodeProto) -> onnx.ModelProto:
    whole = model(RELU)
    whole.training_info.add().algorithm.CopyFrom(graph(node))
    return whole


# Every place where a node can stand.
PLACES: dict[str, Callable[[onnx.NodeProto], onnx.ModelProto]] = {
    "graph": model,
    "branch": lambda node: model(in_branch(node)),
    "nested branches": lambda node: model(in_branch(node, 9)),
    "function": with_function,
    "branch in function": lambda node: with_function(in_branch(node)),
    "training graph": with_training,
}


@pytest.mark.parametrize("place", PLACES)
def test_random_operators_are_found(place: str) -> None:
    needle = helper.make_node("RandomUniformLike", ["x"], ["y"], name="noise")
    assert random_operators(PLACES[place](needle)) == ["noise (RandomUniformLike)"]
    assert random_operators(PLACES[place](RELU)) == []


@pytest.mark.parametrize("place", PLACES)
def test_custom_operators_are_found(place: str) -> None:
    needle = helper.make_node("Relu", ["x"], ["y"], domain="com.example")
    assert custom_domains(PLACES[place](needle)) == ["com.example"]
    assert custom_domains(PLACES[place](RELU)) == []


@pytest.mark.parametrize("place", PLACES)
def test_constants_are_found(place: str) -> None:
    needle = helper.make_node("Constant", [], ["y"], value=tensor())
    assert [t.name for t in all_tensors(PLACES[place](needle))] == ["needle"]


def test_nodes_without_a_name_or_outputs_can_be_named() -> None:
    bare = helper.make_node("Bernoulli", ["x"], [])
    assert random_operators(model(bare)) == [" (Bernoulli)"]
    assert random_operators(model(helper.make_node("Bernoulli", ["x"], ["y"]))) == ["y (Bernoulli)"]


def test_dropout_counts_as_random_with_a_training_switch_only() -> None:
    evaluated = helper.make_node("Dropout", ["x", "ratio"], ["y"], name="d")
    trained = helper.make_node("Dropout", ["x", "", "training"], ["y"], name="d")
    assert random_operators(model(evaluated)) == []
    assert random_operators(model(trained)) == ["d (Dropout in training mode)"]


def test_the_files_own_functions_and_standard_domains_are_not_custom() -> None:
    assert custom_domains(with_function(RELU)) == []
    standard = (helper.make_node("Relu", ["x"], ["y"], domain=d) for d in ("ai.onnx", "ai.onnx.ml"))
    assert custom_domains(model(*standard)) == []
    assert custom_domains(model(helper.make_node("G", ["x"], ["y"], domain="own"))) == ["own"]


def put_in_initializer(whole: onnx.ModelProto) -> None:
    whole.graph.initializer.append(tensor())


def put_in_branch_without_nodes(whole: onnx.ModelProto) -> None:
    branch = onnx.GraphProto(name="b", initializer=[tensor()])
    whole.graph.node[0].attribute.append(helper.make_attribute("then_branch", branch))


def put_in_sparse_initializer(whole: onnx.ModelProto) -> None:
    whole.graph.sparse_initializer.add().values.CopyFrom(tensor())


def put_in_sparse_indices(whole: onnx.ModelProto) -> None:
    whole.graph.sparse_initializer.add().indices.CopyFrom(tensor())


def put_in_list_of_tensors(whole: onnx.ModelProto) -> None:
    attribute = AttributeProto(name="a", type=AttributeProto.TENSORS, tensors=[tensor()])
    whole.graph.node[0].attribute.append(attribute)


def put_in_list_of_graphs(whole: onnx.ModelProto) -> None:
    branch = onnx.GraphProto(initializer=[tensor()])
    attribute = AttributeProto(name="a", type=AttributeProto.GRAPHS, graphs=[branch])
    whole.graph.node[0].attribute.append(attribute)


def put_in_sparse_attribute(whole: onnx.ModelProto) -> None:
    attribute = whole.graph.node[0].attribute.add(name="a", type=AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.values.CopyFrom(tensor())


def put_in_default_of_a_function(whole: onnx.ModelProto) -> None:
    function = whole.functions.add(name="F", domain="own")
    function.attribute_proto.append(helper.make_attribute("a", tensor()))


def put_in_training_graph(whole: onnx.ModelProto) -> None:
    whole.training_info.add().initialization.initializer.append(tensor())


HIDING_PLACES = [value for name, value in globals().items() if name.startswith("put_in_")]


@pytest.mark.parametrize("hide", HIDING_PLACES)
def test_stored_tensors_are_found(hide: Callable[[onnx.ModelProto], None]) -> None:
    whole = model(RELU)
    hide(whole)
    assert [t.name for t in all_tensors(whole)] == ["needle"]


@pytest.mark.parametrize("hide", HIDING_PLACES)
@pytest.mark.parametrize("named", [True, False])
def test_external_data_is_refused_wherever_it_stands(
    tmp_path: Path, hide: Callable[[onnx.ModelProto], None], named: bool
) -> None:
    whole = model(RELU)
    hide(whole)
    (needle,) = all_tensors(whole)
    needle.Clear()  # a scalar without a name, type or data is a tensor too
    needle.name = "needle" if named else ""
    needle.external_data.add(key="location", value="weights.bin")
    path = tmp_path / "m.onnx"
    path.write_bytes(whole.SerializeToString())
    with pytest.raises(InputError, match=r"in another file \('weights.bin'\)"):
        load_onnx(path)


def test_load_reads_what_was_saved(tmp_path: Path) -> None:
    whole = model(RELU, in_branch(RELU, 9))
    path = tmp_path / "a file é.onnx"
    path.write_bytes(whole.SerializeToString())
    assert load_onnx(path) == whole
    assert sum(node.op_type == "Relu" for node in all_nodes(whole)) == 11


def test_metadata_of_this_package_only() -> None:
    whole = model(RELU)
    assert read_metadata(whole) == {}
    helper.set_model_props(whole, {"svit_deploy.mode": "dynamic", "author": "someone"})
    assert read_metadata(whole) == {"mode": "dynamic"}


def test_read_scalar() -> None:
    whole = model(RELU)
    whole.graph.initializer.append(helper.make_tensor("t", TensorProto.FLOAT, [], [0.5]))
    assert read_scalar(whole, "t") == 0.5
    with pytest.raises(InputError, match="no initializer named 'u'"):
        read_scalar(whole, "u")
