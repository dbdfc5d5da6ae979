"""Verification refuses broken exports and says where they break.

Each fault breaks the exporter in one place while the manifest keeps telling the truth. The goldens
are checkpoints of random weights that are sensitive to such faults on purpose.
"""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatch

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

from svit_deploy.methods import svit
from svit_deploy.model.config import Preprocess
from tests.verify.checks import check, first_stage, refused, with_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("parity_only")]


def with_weights(change, pattern):
    """Changes the weights whose names match, as in `gates.*.weight`."""
    return lambda model: replace(
        model,
        weights={
            name: np.ascontiguousarray(change(array)) if fnmatch(name, pattern) else array
            for name, array in model.weights.items()
        },
    )


def tanh_gelu(scope):
    def approximate(model):
        found = [n for n in model.graph.node if n.op_type == "Gelu" and scope in n.name]
        assert found
        for node in found:
            node.attribute.append(onnx.helper.make_attribute("approximate", "tanh"))

    return approximate


# --- numerics ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsilon", "stage"),
    [
        ({"block_eps": 1e-6}, "block 0"),
        ({"gate_eps": 1e-6}, "gate 0"),
        ({"norm_eps": 1e-5}, "head"),
    ],
)
def test_layer_norm_epsilon(broken, verify, model_fault, epsilon, stage):
    model_fault(with_config(**epsilon))
    refused(verify(broken()), *first_stage(stage))


@pytest.mark.parametrize(("scope", "stage"), [("/mlp/", "block 0"), ("/gate/", "gate 0")])
def test_tanh_gelu(broken, verify, graph_fault, scope, stage):
    graph_fault(tanh_gelu(scope))
    refused(verify(broken()), *first_stage(stage))


@pytest.mark.parametrize("fault", ["epsilon of blocks", "GELU of blocks", "GELU of gates"])
def test_numerics_of_a_trained_model(
    digits, heldout, broken, verify, model_fault, graph_fault, fault
):
    """Not made to be sensitive, and refused all the same."""
    stage = "gate 0" if "gates" in fault else "block 0"
    if "epsilon" in fault:
        model_fault(with_config(block_eps=1e-6))
    else:
        graph_fault(tanh_gelu("/gate/" if "gates" in fault else "/mlp/"))
    report = verify(broken(model=digits, calibration=heldout[:8]), digits)
    refused(report, *first_stage(stage))


@pytest.mark.parametrize("factor", [0.5, 1.001])
def test_attention_scale(broken, verify, graph_fault, factor):
    def rescale(model):
        scale = np.float32((48 // 6) ** -0.5)
        found = [t for t in model.graph.initializer if t.dims == [] and scalar(t) == scale]
        assert found
        for tensor in found:
            tensor.CopyFrom(onnx.numpy_helper.from_array(scale * np.float32(factor), tensor.name))

    graph_fault(rescale)
    refused(verify(broken()), *first_stage("block 0"))


def scalar(tensor):
    return onnx.numpy_helper.to_array(tensor).item()


# --- weights -----------------------------------------------------------------------------------


def test_query_and_key_swapped_with_value(broken, verify, model_fault):
    model_fault(with_weights(lambda w: np.roll(w, len(w) // 3, axis=0), "*.attn.qkv.weight"))
    refused(verify(broken()), *first_stage("block 0"))


def test_number_of_heads(broken, verify, model_fault):
    model_fault(with_config(num_heads=3))
    refused(verify(broken()), *first_stage("block 0"))


def test_channel_order_of_the_patch_embedding(broken, verify, model_fault):
    model_fault(with_weights(lambda w: w[:, ::-1], "patch_embed.proj.weight"))
    refused(verify(broken()), *first_stage("embedding"))


def test_normalisation_folded_into_the_patch_embedding(broken, verify, model_fault):
    """ImageNet's statistics are undone, others put in their place."""
    right, wrong = Preprocess(), Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    factor = np.divide(right.std, wrong.std).astype(np.float32).reshape(1, 3, 1, 1)
    model_fault(with_weights(lambda w: w * factor, "patch_embed.proj.weight"))
    refused(verify(broken()), *first_stage("embedding"))


def test_positions_of_rows_and_columns_exchanged(broken, verify, model_fault):
    def transpose(table):
        prefix, patches = np.split(table, [1], axis=1)
        grid = patches.reshape(1, 14, 14, -1).transpose(0, 2, 1, 3).reshape(patches.shape)
        return np.concatenate([prefix, grid], axis=1)

    model_fault(with_weights(transpose, "pos_embed"))
    refused(verify(broken()), *first_stage("embedding"))


def test_one_head_of_a_distilled_model(broken, verify, model_fault):
    model_fault(with_weights(np.zeros_like, "head_dist.*"))
    report = verify(broken("deit_distilled", "dense"), "deit_distilled")
    refused(report, *first_stage("head"))


# --- gates -------------------------------------------------------------------------------------


def test_keep_and_prune_channel_swapped(broken, verify, model_fault):
    model_fault(with_weights(lambda w: w[::-1], "gates.*.mlp.fc2.*"))
    refused(verify(broken()), *first_stage("gate 0"), "reference")


@pytest.mark.parametrize(("gate", "mode"), [(0, "dynamic"), (7, "budget"), (7, "masked")])
def test_gate_allowed_to_prune_the_class_token(broken, verify, model_fault, mode, gate):
    model_fault(with_config(gate_class_token=tuple(g in (gate, 8) for g in range(9))))
    refused(verify(broken(mode=mode)), *first_stage(f"gate {gate}"), "always keeps")


@pytest.mark.parametrize("mode", ["dynamic", "budget"])
def test_last_gate_never_allowed_to_prune_the_class_token(broken, verify, model_fault, mode):
    model_fault(with_config(gate_class_token=(False,) * 9))
    budget = "196" if mode == "budget" else None
    refused(verify(broken(mode=mode, budget=budget)), *first_stage("gate 8"), "always keeps")


@pytest.mark.parametrize("mode", ["dynamic", "budget", "masked"])
def test_cumulative_masks(broken, verify, monkeypatch, mode):
    """No token comes back once it was pruned."""
    name, previous = f"select_{mode}", []
    select = getattr(svit, name)

    def select_cumulatively(graph, grid, decision, *rest, **named):
        if previous:
            decision = graph.op("And", decision, previous[-1])
        previous.append(decision)
        return select(graph, grid, decision, *rest, **named)

    monkeypatch.setattr(svit, name, select_cumulatively)
    report = verify(broken(mode=mode))
    refused(report, *first_stage("block 4"))
    honest = check(report, "keep mask follows the margins")
    assert not honest.passed and honest.detail.startswith("gate 1 ")


def test_threshold_off_by_a_hundredth(broken, verify, model_fault):
    model_fault(with_config(thresholds=(0.0,) * 4 + (0.01,) + (0.0,) * 4))
    refused(verify(broken()), "thresholds", "gate 4 has 0.01, not 0")


@pytest.mark.parametrize("threshold", [-0.625, 0.0, 3.1])
def test_threshold_off_by_one_ulp_is_accepted(golden, broken, verify, model_fault, threshold):
    right = with_config(thresholds=(float(np.float32(threshold)),) * 9)(golden("svit_cls").model)
    beside = float(np.nextafter(np.float32(threshold), np.float32(9)))
    model_fault(with_config(thresholds=(beside,) * 9))
    report = verify(broken(model=right))
    assert report.passed, report.verdict
    assert any("own thresholds" in note for note in report.notes) == (threshold != 0)
