"""Verification refuses broken exports and says where they break.

Each fault breaks the exporter in one place while the manifest keeps telling the truth. The goldens
are checkpoints of random weights that are sensitive to such faults on purpose.
"""

from __future__ import annotations

import json
from dataclasses import replace
from fnmatch import fnmatch

import numpy as np
import onnx
import pytest
from svit_deploy.export.onnx import ExportSettings, export_model
from svit_deploy.export.vit import VitGraph

from svit_deploy.bundle import MANIFEST, MODEL, hash_file, open_bundle
from svit_deploy.errors import ExportError
from svit_deploy.export import onnx as onnx_export
from svit_deploy.export import tokens, vit
from svit_deploy.images import synthetic_images
from svit_deploy.model.config import Preprocess, TokenMode
from svit_deploy.verify.expected import Recomputed, Recorded
from svit_deploy.verify.run import verify_bundle
from svit_deploy.verify.settings import VerifySettings

pytest.importorskip("torch")

SETTINGS = VerifySettings(threads=1, repeats=2)
PRUNING = ("dynamic", "budget", "masked")


@pytest.fixture
def verify(golden, tmp_path):
    """Exports a golden with the exporter as it is now, and verifies it."""

    def export_and_verify(name="svit_cls", mode="dynamic", **settings):
        found = golden(name)
        settings.setdefault("budget", "1.0" if mode == "budget" else None)
        chosen = ExportSettings(tokens=TokenMode(mode), calibration=found.images, **settings)
        bundle = export_model(found.model, tmp_path / "broken", chosen)
        return verify_bundle(bundle, Recomputed(bundle, found.model, None), SETTINGS)

    return export_and_verify


def refused(report, *where):
    """The report refuses, clearly, and its verdict begins with what is wrong."""
    assert not report.passed, report.verdict
    assert report.verdict.startswith(f"FAIL broken: {where[0]}: "), report.verdict
    for words in where[1:]:
        assert words in report.verdict
    # What docs/verify.md promises: no fault of these is anywhere near its limit.
    wrong = [stage for stage in report.stages if stage.error > stage.limit]
    assert not wrong or wrong[0].error > 10 * wrong[0].limit


def first_stage(name):
    return "every stage by itself", f"{name} is the first"


# --- ways to break the exporter ----------------------------------------------------------------


@pytest.fixture
def model_fault(monkeypatch):
    """Graphs are written from a changed model."""

    def install(change):
        monkeypatch.setattr(
            onnx_export, "VitGraph", lambda model, *rest: VitGraph(change(model), *rest)
        )

    return install


@pytest.fixture
def graph_fault(monkeypatch):
    """Graphs are changed after they are written."""

    def install(change):
        build = VitGraph.build

        def build_broken(self):
            model = build(self)
            change(model)
            return model

        monkeypatch.setattr(VitGraph, "build", build_broken)

    return install


def with_config(**changes):
    return lambda model: replace(model, config=replace(model.config, **changes))


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
def test_layer_norm_epsilon(verify, model_fault, epsilon, stage):
    model_fault(with_config(**epsilon))
    refused(verify(), *first_stage(stage))


@pytest.mark.parametrize(("scope", "stage"), [("/mlp/", "block 0"), ("/gate/", "gate 0")])
def test_tanh_gelu(verify, graph_fault, scope, stage):
    graph_fault(tanh_gelu(scope))
    refused(verify(), *first_stage(stage))


@pytest.mark.parametrize("fault", ["epsilon of blocks", "GELU of blocks", "GELU of gates"])
def test_numerics_of_a_trained_model(digits, heldout, tmp_path, model_fault, graph_fault, fault):
    """Not made to be sensitive, and refused all the same."""
    stage = "gate 0" if "gates" in fault else "block 0"
    if "epsilon" in fault:
        model_fault(with_config(block_eps=1e-6))
    else:
        graph_fault(tanh_gelu("/gate/" if "gates" in fault else "/mlp/"))
    settings = ExportSettings(calibration=heldout[:8])
    bundle = export_model(digits, tmp_path / "broken", settings)
    report = verify_bundle(bundle, Recomputed(bundle, digits, None), SETTINGS)
    refused(report, *first_stage(stage))


@pytest.mark.parametrize("factor", [0.5, 1.001])
def test_attention_scale(verify, graph_fault, factor):
    def rescale(model):
        scale = np.float32((48 // 6) ** -0.5)
        found = [t for t in model.graph.initializer if t.dims == [] and scalar(t) == scale]
        assert found
        for tensor in found:
            tensor.CopyFrom(onnx.numpy_helper.from_array(scale * np.float32(factor), tensor.name))

    graph_fault(rescale)
    refused(verify(), *first_stage("block 0"))


def scalar(tensor):
    return onnx.numpy_helper.to_array(tensor).item()


# --- weights -----------------------------------------------------------------------------------


def test_query_and_key_swapped_with_value(verify, model_fault):
    model_fault(with_weights(lambda w: np.roll(w, len(w) // 3, axis=0), "*.attn.qkv.weight"))
    refused(verify(), *first_stage("block 0"))


def test_number_of_heads(verify, model_fault):
    model_fault(with_config(num_heads=3))
    refused(verify(), *first_stage("block 0"))


def test_channel_order_of_the_patch_embedding(verify, model_fault):
    model_fault(with_weights(lambda w: w[:, ::-1], "patch_embed.proj.weight"))
    refused(verify(), *first_stage("embedding"))


def test_normalisation_folded_into_the_patch_embedding(verify, model_fault):
    """ImageNet's statistics are undone, others put in their place."""
    right, wrong = Preprocess(), Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    factor = np.divide(right.std, wrong.std).astype(np.float32).reshape(1, 3, 1, 1)
    model_fault(with_weights(lambda w: w * factor, "patch_embed.proj.weight"))
    refused(verify(), *first_stage("embedding"))


def test_positions_of_rows_and_columns_exchanged(verify, model_fault):
    def transpose(table):
        prefix, patches = np.split(table, [1], axis=1)
        grid = patches.reshape(1, 14, 14, -1).transpose(0, 2, 1, 3).reshape(patches.shape)
        return np.concatenate([prefix, grid], axis=1)

    model_fault(with_weights(transpose, "pos_embed"))
    refused(verify(), *first_stage("embedding"))


def test_one_head_of_a_distilled_model(golden, verify, model_fault):
    model_fault(with_weights(np.zeros_like, "head_dist.*"))
    refused(verify("deit_distilled", "dense"), *first_stage("head"))


# --- gates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", PRUNING)
def test_keep_and_prune_channel_swapped(verify, model_fault, mode):
    model_fault(with_weights(lambda w: w[::-1], "gates.*.mlp.fc2.*"))
    refused(verify(mode=mode), *first_stage("gate 0"), "reference")


@pytest.mark.parametrize("mode", PRUNING)
@pytest.mark.parametrize("gate", [0, 7])
def test_gate_allowed_to_prune_the_class_token(verify, model_fault, mode, gate):
    model_fault(with_config(gate_class_token=tuple(g in (gate, 8) for g in range(9))))
    refused(verify(mode=mode), *first_stage(f"gate {gate}"), "always keeps")


@pytest.mark.parametrize("mode", PRUNING)
def test_last_gate_never_allowed_to_prune_the_class_token(verify, model_fault, mode):
    model_fault(with_config(gate_class_token=(False,) * 9))
    budget = "196" if mode == "budget" else None
    refused(verify(mode=mode, budget=budget), *first_stage("gate 8"), "always keeps")


@pytest.mark.parametrize("mode", PRUNING)
def test_cumulative_masks(verify, monkeypatch, mode):
    """No token comes back once it was pruned."""
    name, previous = f"select_{mode}", []
    select = getattr(vit, name)

    def select_cumulatively(graph, grid, decision, *rest):
        if previous:
            decision = graph.op("And", decision, previous[-1])
        previous.append(decision)
        return select(graph, grid, decision, *rest)

    monkeypatch.setattr(vit, name, select_cumulatively)
    report = verify(mode=mode)
    refused(report, *first_stage("block 4"))
    assert failed(report, "keep mask follows the margins").startswith("gate 1 ")


def test_threshold_off_by_a_hundredth(verify, model_fault):
    model_fault(with_config(thresholds=(0.0,) * 4 + (0.01,) + (0.0,) * 4))
    refused(verify(), "thresholds", "gate 4 has 0.01, not 0")


@pytest.mark.parametrize("threshold", [-0.625, 0.0, 3.1])
def test_threshold_off_by_one_ulp_is_accepted(golden, tmp_path, model_fault, threshold):
    found = golden("svit_cls")
    right = with_config(thresholds=(float(np.float32(threshold)),) * 9)(found.model)
    beside = float(np.nextafter(np.float32(threshold), np.float32(9)))
    model_fault(with_config(thresholds=(beside,) * 9))
    settings = ExportSettings(calibration=found.images)
    bundle = export_model(right, tmp_path / "bundle", settings)
    report = verify_bundle(bundle, Recomputed(bundle, found.model, None), SETTINGS)
    assert report.passed, report.verdict
    assert any("own thresholds" in note for note in report.notes) == (threshold != 0)


def test_threshold_that_nothing_reads(verify, graph_fault):
    """The gate compares with a constant of its own: thresholds cannot be changed any more."""

    def hard_code(model):
        zero = onnx.numpy_helper.from_array(np.float32(0), "zero")
        model.graph.initializer.append(zero)
        for node in model.graph.node:
            if "gate_3.threshold" in node.input:
                node.input[1] = "zero"

    graph_fault(hard_code)
    refused(verify(), "all kept", "gate 3 decides")


def failed(report, name):
    """What a failed check says."""
    (found,) = [check for check in report.checks if check.name == name]
    assert not found.passed
    return found.detail


# --- token modes -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", PRUNING)
def test_keys_not_hidden(verify, monkeypatch, mode):
    """Pruned tokens (masked mode) or padding (dynamic, budget) are attended to."""
    monkeypatch.setattr(tokens, "MASKED", 0.0)
    refused(verify(mode=mode), *first_stage("block 3"))


def test_padding_hidden_incompletely(verify, monkeypatch):
    """A bias that is too small lets a little through."""
    monkeypatch.setattr(tokens, "MASKED", -6.0)
    refused(verify(), *first_stage("block 3"))


def test_keys_hidden_from_the_wrong_image(verify, monkeypatch):
    def shifted(graph, visible):
        return key_bias(graph, graph.op("Gather", visible, graph.constant([1, 2, 0])))

    key_bias = tokens.key_bias
    monkeypatch.setattr(tokens, "key_bias", shifted)
    refused(verify(), *first_stage("block 3"))


def test_budget_smaller_than_the_manifest_says(verify, monkeypatch):
    select = vit.select_budget
    monkeypatch.setattr(
        vit, "select_budget", lambda *values: select(*values[:-1], min(values[-1], 120))
    )
    refused(verify(mode="budget"), *first_stage("block 3"))


def test_budget_larger_than_the_manifest_says(verify, monkeypatch):
    select = vit.select_budget
    monkeypatch.setattr(vit, "select_budget", lambda *values: select(*values[:-1], values[-1] + 1))
    refused(verify(mode="budget", budget="30"), "keep mask follows the margins", "gate 0")


def test_spare_rows_of_a_budget_not_restored(verify, graph_fault):
    """Rows past the kept count are computed and written back all the same."""

    def write_everything(model):
        for node in model.graph.node:
            if node.op_type == "ScatterND":
                where = next(n for n in model.graph.node if node.input[2] in n.output)
                node.input[2] = where.input[1]

    graph_fault(write_everything)
    refused(verify(mode="budget"), *first_stage("block 3"))


def test_overflow_miscounted(verify, graph_fault):
    def count_too_many(model):
        for node in model.graph.node:
            if "overflow" in node.output:
                node.output[0] = "right"
        one = onnx.numpy_helper.from_array(np.int64(1), "one")
        model.graph.initializer.append(one)
        model.graph.node.append(onnx.helper.make_node("Add", ["right", "one"], ["overflow"]))

    graph_fault(count_too_many)
    refused(verify(mode="budget"), "overflow counts what the budget cuts", "gate 0")


# --- randomness --------------------------------------------------------------------------------


def test_the_exporter_refuses_gumbel_noise(verify, monkeypatch):
    margin = VitGraph.margin

    def sampled(self, x, name):
        clean = margin(self, x, name)
        noise = self.graph.op("RandomUniformLike", clean)
        return self.graph.op("Add", clean, self.graph.op("Neg", self.graph.op("Log", noise)))

    monkeypatch.setattr(VitGraph, "margin", sampled)
    with pytest.raises(ExportError, match=r"draws random numbers in block_10/gate/RandomUniform"):
        verify()


def test_noise_put_into_the_graph_after_the_export(golden, verify, tmp_path):
    assert verify().passed
    folder = tmp_path / "broken"
    model = onnx.load(folder / MODEL)
    margin = next(node for node in model.graph.node if "gate_2.margin" in node.output)
    margin.output[0] = "clean"
    noise = onnx.helper.make_node("RandomUniformLike", ["clean"], ["noise"], high=1e-3, low=-1e-3)
    add = onnx.helper.make_node("Add", ["clean", "noise"], ["gate_2.margin"])
    at = list(model.graph.node).index(margin) + 1
    model.graph.node.insert(at, noise)
    model.graph.node.insert(at + 1, add)
    onnx.save(model, folder / MODEL)
    manifest = json.loads((folder / MANIFEST).read_text())
    size = (folder / MODEL).stat().st_size
    manifest["files"][MODEL] = {"size_bytes": size, "sha256": hash_file(folder / MODEL)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    bundle = open_bundle(folder)
    for expectations in (Recorded(bundle), Recomputed(bundle, golden("svit_cls").model, None)):
        report = verify_bundle(bundle, expectations, SETTINGS)
        refused(report, "no random operator", "the graph samples in noise (RandomUniformLike)")


# --- preprocessing -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, "mean is [0.5, 0.5, 0.5] in the bundle, [0.485, 0.456, 0.406]"),
        ({"crop_ratio": 1.0}, "crop_ratio is 1.0 in the bundle, 0.875 in the checkpoint's"),
        ({"interpolation": "bilinear"}, "interpolation is bilinear in the bundle, bicubic in"),
    ],
)
def test_preprocessing_of_another_model(golden, tmp_path, changed, words):
    found = golden("svit_cls")
    wrong = with_config(preprocess=Preprocess(**changed))(found.model)
    bundle = export_model(wrong, tmp_path / "broken", ExportSettings(calibration=found.images))
    pictures = synthetic_images(3, (64, 80))
    for images in (pictures, None):
        report = verify_bundle(bundle, Recomputed(bundle, found.model, images), SETTINGS)
        refused(report, "inputs", words)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num_heads": 3}, "num_heads is 3 in the bundle, 6 in the checkpoint's"),
        ({"gate_class_token": (False,) * 9}, "gate_class_token is [False, False"),
        ({"block_eps": 1e-6}, "block_eps is 1e-06 in the bundle"),
    ],
)
def test_settings_of_another_model(golden, tmp_path, changed, words):
    """As a wrong --set gives at the export, with a manifest that tells it."""
    found = golden("svit_cls")
    wrong = with_config(**changed)(found.model)
    bundle = export_model(wrong, tmp_path / "broken", ExportSettings(calibration=found.images))
    report = verify_bundle(bundle, Recomputed(bundle, found.model, None), SETTINGS)
    refused(report, "configuration", words)


def test_checkpoint_of_another_training(golden, tmp_path):
    bundle = export_model(
        golden("svit_cls").model,
        tmp_path / "broken",
        ExportSettings(calibration=golden("svit_cls").images),
    )
    other = golden("svit_cls_empty_gate").model
    report = verify_bundle(bundle, Recomputed(bundle, other, None), SETTINGS)
    refused(report, *first_stage("gate 8"))
    assert "the bundle was exported from another file, checkpoint.pth" in report.notes


# --- controls ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, mode) for name in ("svit_cls", "svit_cls_empty_gate") for mode in PRUNING),
        ("svit_cls_224", "dynamic"),
        ("svit_cls", "dense"),
        ("deit", "dense"),
        ("deit_distilled", "dense"),
    ],
)
def test_an_unbroken_export_is_accepted(golden, export, name, mode):
    bundle = export(name, mode)
    report = verify_bundle(bundle, Recomputed(bundle, golden(name).model, None), SETTINGS)
    assert report.passed, report.verdict
    assert all(not gate.flips.flips for gate in report.gates)
    # Nor is rounding: see docs/verify.md.
    assert all(stage.error < stage.limit / 5 for stage in report.stages)
    assert all(gate.drift < gate.rounding / 5 for gate in report.gates)
    assert report.logits_error < report.limits.logits / 5


@pytest.mark.parametrize("name", ["svit_cls", "svit_cls_empty_gate"])
@pytest.mark.parametrize("mode", PRUNING)
def test_an_unbroken_export_is_accepted_without_pytorch(export, name, mode):
    bundle = export(name, mode)
    report = verify_bundle(bundle, Recorded(bundle), SETTINGS)
    assert report.passed, report.verdict


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"block_eps": 1e-6}, "gates and logits: gate 0 is the first of 10"),
        ({"gate_eps": 1e-6}, "gates and logits: gate 0 is the first of 9"),
        ({"norm_eps": 1e-5}, "gates and logits: head is the first"),
        ({"gate_class_token": (False,) * 9}, "gates and logits: gate 8 is the first"),
        ({"thresholds": (0.01,) * 9}, "thresholds: gate 0 has 0.01, not 0, gate 1"),
    ],
)
def test_faults_are_seen_without_pytorch_too(verify, model_fault, tmp_path, change, verdict):
    model_fault(with_config(**change))
    verify()
    bundle = open_bundle(tmp_path / "broken")
    report = verify_bundle(bundle, Recorded(bundle), SETTINGS)
    assert report.verdict.startswith(f"FAIL broken: {verdict}"), report.verdict
