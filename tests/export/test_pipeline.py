"""Exported graphs compute what the official code does, whoever runs them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

pytest.importorskip("torch")

import torch
from torch.nn import functional as F

from svit_deploy import names
from svit_deploy.backbones.rules import keep_above, keep_all, keep_none
from svit_deploy.bundle.bundle import MODEL, REFERENCE
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import InputError, UsageError
from svit_deploy.export.pipeline import build_graph, export_model, export_source
from svit_deploy.export.settings import ExportSettings
from svit_deploy.graph.edit import set_scalars
from svit_deploy.io.onnx_file import custom_domains, random_operators, read_metadata
from svit_deploy.model.config import TokenMode
from svit_deploy.model.sizes import SizeRange
from svit_deploy.names import MANIFEST
from tests.export.running import LOGITS, PRUNING, assert_as_recorded, reference, run

EXPORTS = [
    *((name, mode) for name in ("svit_cls", "svit_cls_empty_gate") for mode in PRUNING),
    ("svit_cls_224", "dynamic"),
    ("deit", "dense"),
    ("deit_distilled", "dense"),
]
LARGEST = float(np.finfo(np.float32).max)
KEPT = {"all": (keep_all, -LARGEST), "none": (keep_none, LARGEST)}


# --- parity with the official code -------------------------------------------------------------


@pytest.mark.parametrize(("name", "mode"), EXPORTS)
def test_golden(golden, export, name, mode):
    found = golden(name)
    for alone in (True, False):
        assert_as_recorded(found, run(export(name, mode), found.inputs, alone=alone))
    sample = export(name, mode).load_samples()[0]
    np.testing.assert_array_equal([image.pixels for image in sample.images], found.inputs)
    recorded = {"logits": np.stack([one["logits"] for one in sample.result.outputs])}
    if found.model.config.num_gates:
        selected = sample.result.selected
        recorded |= {"keep_mask": selected.keep_mask, "margin": selected.margin}
    assert_as_recorded(found, recorded)


@pytest.mark.parametrize("mode", PRUNING)
def test_onnx_alone_defines_the_result(golden, export, mode):
    """ONNX's reference implementation agrees: nothing hangs on a habit of one runtime."""
    found = golden("svit_cls")
    evaluator = ReferenceEvaluator(export("svit_cls", mode).load_model())
    outputs = evaluator.run(None, {"images": found.inputs[:2]})
    outputs = dict(zip(evaluator.output_names, outputs, strict=True))
    assert_as_recorded(found, outputs, slice(2))


def test_the_dense_twin_has_no_gates(golden, export):
    found = golden("svit_cls")
    bundle = export("svit_cls", "dense")
    assert bundle.config == found.dense.config
    expected, _ = reference(found.dense, found.inputs)
    for alone in (True, False):
        outputs = run(bundle, found.inputs, alone=alone)
        assert list(outputs) == ["logits"]
        np.testing.assert_allclose(outputs["logits"], expected, rtol=0, atol=LOGITS)
    assert not any("gate" in tensor.name for tensor in bundle.load_model().graph.initializer)


@pytest.mark.parametrize("mode", PRUNING)
def test_one_graph_runs_any_batch(golden, export, mode):
    found = golden("svit_cls_empty_gate")
    with OnnxRuntimeEngine(export(found.name, mode).model_path, threads=1) as engine:
        for batch in range(1, 6):
            images = [(image + batch) % 3 for image in range(batch)]
            outputs = engine.run({names.INPUT: found.inputs[images]})
            assert_as_recorded(found, outputs, images)


@pytest.mark.parametrize("mode", PRUNING)
@pytest.mark.parametrize("kept", KEPT)
def test_everything_or_nothing_kept(golden, export, mode, kept):
    found, (rule, threshold) = golden("svit_cls"), KEPT[kept]
    model = export("svit_cls", mode).load_model()
    model = set_scalars(model, {names.threshold_name(gate): threshold for gate in range(9)})
    logits, keep_mask = reference(found.model, found.inputs, rule)
    for alone in (True, False):
        outputs = run(model, found.inputs, alone=alone)
        np.testing.assert_array_equal(outputs["keep_mask"], keep_mask)
        assert outputs["keep_mask"][:, 8].all() == (kept == "all")
        assert outputs["keep_mask"][:, 8].any() == (kept == "all")
        np.testing.assert_allclose(outputs["logits"], logits, rtol=0, atol=LOGITS)


def test_settings_that_contradict_each_other_are_refused(golden, tmp_path):
    for settings in (
        {"opset": 19},
        {"opset": 99},
        {"budget": "0.5"},
        {"budget_percentile": 0.0},
        {"target_keep": (0.5,)},
    ):
        with pytest.raises(UsageError):
            ExportSettings(**settings)
    dynamic = ExportSettings(tokens=TokenMode.DYNAMIC)
    with pytest.raises(UsageError, match="a deit model has no gates"):
        export_model(golden("deit").model, tmp_path / "bundle", dynamic)


# --- the graph ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [*PRUNING, "dense"])
def test_the_graph_is_standard_onnx(export, mode):
    bundle = export("svit_cls", mode)
    model = bundle.load_model()
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert not custom_domains(model)
    assert not random_operators(model)
    assert not model.functions
    assert {path.name for path in bundle.path.iterdir()} == {MANIFEST, MODEL, REFERENCE}
    (images,) = model.graph.input
    batch, *rest = images.type.tensor_type.shape.dim
    assert (images.name, batch.dim_param) == ("images", "batch")
    assert [size.dim_value for size in rest] == [3, 56, 56]
    gates = {"dynamic": ["keep_mask", "margin"], "dense": []}
    gates |= {"masked": gates["dynamic"], "budget": [*gates["dynamic"], "overflow"]}
    assert [output.name for output in model.graph.output] == ["logits", *gates[mode]]


@pytest.mark.parametrize(("name", "mode"), [("svit_cls", "dynamic"), ("deit", "dense")])
def test_layer_norm_epsilons(export, name, mode):
    """Too small an effect on some trained models for any comparison of numbers to show."""
    svit = name == "svit_cls"
    found = set()
    for node in export(name, mode).load_model().graph.node:
        if node.op_type == "LayerNormalization":
            (epsilon,) = [a.f for a in node.attribute if a.name == "epsilon"]
            found.add((re.sub(r"_\d+", "", node.name.rpartition("/")[0]), f"{epsilon:.0e}"))
    blocks = "1e-05" if svit else "1e-06"
    gates = {("block/gate", "1e-05")} if svit else set()
    assert found == {("block/attention", blocks), ("block/mlp", blocks), ("head", "1e-06"), *gates}


@pytest.mark.parametrize("mode", ["budget", "masked", "dense"])
def test_modes_with_static_shapes_have_no_other_free_dimension(export, mode):
    """Given the batch, every value has a known shape, as accelerators need it."""
    model = export("svit_cls", mode).load_model()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    # Shape inference does not follow row numbers that are counted from the batch size.
    free = {
        value.name
        for value in inferred.graph.value_info
        for size in value.type.tensor_type.shape.dim
        if not size.HasField("dim_value")
        and value.type.tensor_type.elem_type != onnx.TensorProto.INT64
    }
    assert not free


@pytest.mark.parametrize("opset", [21, 23])
def test_newer_operator_sets(golden, export, opset):
    found = golden("svit_cls")
    bundle = export("svit_cls", "dynamic", opset=opset)
    assert bundle.load_model().opset_import[0].version == opset == bundle.manifest["opset"]
    assert_as_recorded(found, run(bundle, found.inputs))


@pytest.mark.parametrize("mode", PRUNING)
def test_without_gate_outputs(golden, export, mode):
    found = golden("svit_cls")
    bundle = export("svit_cls", mode, gate_outputs=False)
    outputs = run(bundle, found.inputs)
    assert list(outputs) == ["logits"]
    assert_as_recorded(found, outputs)
    assert not bundle.has_gate_outputs


def test_thresholds_can_be_changed_in_the_graph(golden, export):
    found = golden("svit_cls")
    model = export("svit_cls", "dynamic").load_model()
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for gate in range(9):
        threshold = tensors[f"gate_{gate}.threshold"]
        assert (list(threshold.dims), threshold.data_type) == ([], onnx.TensorProto.FLOAT)
    wanted = tuple(0.1 * gate - 0.3 for gate in range(9))
    changed = set_scalars(model, {f"gate_{g}.threshold": t for g, t in enumerate(wanted)})
    outputs = run(changed, found.inputs)
    logits, keep_mask = reference(found.model, found.inputs, keep_above(wanted))
    np.testing.assert_array_equal(outputs["keep_mask"], keep_mask)
    assert (keep_mask != found.keep_mask).any()
    np.testing.assert_allclose(outputs["logits"], logits, rtol=0, atol=LOGITS)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(72, 56), (48, 100)])
def test_another_image_size(golden, tmp_path, size):
    """Positions are resized as DeiT does it, prefix rows left alone."""
    found = golden("svit_cls")
    grid = (size[0] // 4, size[1] // 4)
    model = replace(found.model, config=found.model.config.at(size))
    bundle = export_model(model, tmp_path / "bundle", ExportSettings())
    table = torch.from_numpy(model.weights["pos_embed"])
    square = table[:, 1:].reshape(1, 14, 14, 48).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    resized = resized.flatten(2).transpose(1, 2).numpy()
    tensors = {tensor.name: tensor for tensor in bundle.load_model().graph.initializer}
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensors["patch_positions"]), resized)
    prefix = model.weights["cls_token"] + model.weights["pos_embed"][:, :1]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensors["prefix_tokens"]), prefix)
    inputs = np.stack([image.pixels for image in bundle.load_samples()[0].images])
    assert inputs.shape[2:] == size
    outputs, (logits, keep_mask) = run(bundle, inputs), reference(model, inputs)
    assert outputs["keep_mask"].shape[2] == 1 + grid[0] * grid[1]
    np.testing.assert_array_equal(outputs["keep_mask"], keep_mask)
    np.testing.assert_allclose(outputs["logits"], logits, rtol=0, atol=LOGITS)


def test_build_graph_needs_no_disk(golden):
    found = golden("svit_cls")
    sizes = SizeRange.single(found.model.config.image_size)
    settings = ExportSettings(tokens=TokenMode.DYNAMIC)
    model = build_graph(found.model, settings, (), sizes, {"mode": "dynamic"})
    assert read_metadata(model) == {"mode": "dynamic"}
    assert_as_recorded(found, run(model, found.inputs))


def test_an_empty_folder_is_no_bundle(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"folder without a manifest\.json.*give a checkpoint"):
        export_source(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()
