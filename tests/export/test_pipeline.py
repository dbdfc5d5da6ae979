"""Exported graphs compute what the official code does; bundles are complete, equal and lone."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

pytest.importorskip("torch")

import torch
from torch.nn import functional as F

from svit_deploy.bundle import MANIFEST, MODEL, REFERENCE, open_bundle
from svit_deploy.compare import keep_ratios, kept_counts
from svit_deploy.model.config import TokenMode
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import ExportError, InputError, UsageError
from svit_deploy import names
from svit_deploy.export import onnx as onnx_export
from svit_deploy.export.onnx import ExportSettings, build_graph, export_model
from svit_deploy.graph.edit import set_scalars
from svit_deploy.methods import METHODS
from svit_deploy.models.reference import Reference, keep_above, keep_all, keep_budget, keep_none
from svit_deploy.io.onnx_file import custom_domains, random_operators, read_metadata

ROOT = Path(__file__).parent.parent
GATED = ("svit_cls", "svit_cls_224", "svit_cls_empty_gate")
PRUNING = ("dynamic", "budget", "masked")
EXPORTS = [
    *((name, mode) for name in GATED for mode in PRUNING),
    ("deit", "dense"),
    ("deit_distilled", "dense"),
]
LOGITS, MARGIN = 2e-5, 5e-5
KEPT = {"all": (keep_all, -np.finfo(np.float32).max), "none": (keep_none, np.finfo(np.float32).max)}


def run(model, inputs, *, alone=False):
    """All outputs of a bundle, or of a graph; with `alone` image by image."""
    content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model.model_path
    with OnnxRuntimeEngine(content, threads=1) as engine:
        if not alone:
            return engine.run({names.INPUT: inputs})
        parts = [engine.run({names.INPUT: image[None]}) for image in inputs]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_as_recorded(found, outputs, images=slice(None)):
    """Logits, keep masks and margins are those of the official code."""
    np.testing.assert_allclose(outputs["logits"], found.logits[images], rtol=0, atol=LOGITS)
    if names.KEEP_MASK in outputs:
        np.testing.assert_array_equal(outputs["keep_mask"], found.keep_mask[images])
        finite = np.isfinite(found.margin[images])
        np.testing.assert_array_equal(np.isfinite(outputs["margin"]), finite)
        np.testing.assert_allclose(
            outputs["margin"][finite], found.margin[images][finite], rtol=0, atol=MARGIN
        )


# --- parity with the official code -------------------------------------------------------------


@pytest.mark.parametrize(("name", "mode"), EXPORTS)
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "batch"])
def test_golden(golden, export, name, mode, alone):
    found = golden(name)
    assert_as_recorded(found, run(export(name, mode), found.inputs, alone=alone))


@pytest.mark.parametrize("name", GATED)
def test_budgets_measured_on_the_very_images_are_exact(golden, export, name):
    found = golden(name)
    bundle = export(name, "budget", budget="auto")
    counts = kept_counts(found.keep_mask, found.model.config)
    assert bundle.budgets == tuple(np.maximum(1, counts.max(axis=0)))
    outputs = run(bundle, found.inputs)
    assert_as_recorded(found, outputs)
    assert not outputs["overflow"].any()


@pytest.mark.parametrize("mode", PRUNING)
def test_onnx_alone_defines_the_result(golden, export, mode):
    """ONNX's reference implementation agrees: nothing hangs on a habit of one runtime."""
    found = golden("svit_cls")
    evaluator = ReferenceEvaluator(export("svit_cls", mode).load_model())
    outputs = dict(
        zip(evaluator.output_names, evaluator.run(None, {"images": found.inputs}), strict=True)
    )
    assert_as_recorded(found, outputs)


@pytest.mark.parametrize("name", GATED)
def test_the_dense_twin_has_no_gates(golden, export, name):
    found = golden(name)
    bundle = export(name, "dense")
    assert bundle.config == found.dense.config
    expected = Reference(found.dense).run(found.inputs).logits
    for alone in (True, False):
        outputs = run(bundle, found.inputs, alone=alone)
        assert list(outputs) == ["logits"]
        np.testing.assert_allclose(outputs["logits"], expected, rtol=0, atol=LOGITS)
    assert not any("gate" in tensor.name for tensor in bundle.load_model().graph.initializer)


@pytest.mark.parametrize(("name", "mode"), [("svit_cls_empty_gate", m) for m in PRUNING])
def test_one_graph_runs_any_batch(golden, export, name, mode):
    found = golden(name)
    with OnnxRuntimeEngine(export(name, mode).model_path, threads=1) as engine:
        for batch in range(1, 6):
            images = [(image + batch) % 3 for image in range(batch)]
            outputs = engine.run({names.INPUT: found.inputs[images]})
            assert_as_recorded(found, outputs, images)


@pytest.mark.parametrize("mode", PRUNING)
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "batch"])
def test_everything_or_nothing_kept(golden, export, mode, kept, alone):
    found, (rule, threshold) = golden("svit_cls"), KEPT[kept]
    model = export("svit_cls", mode).load_model()
    model = set_scalars(model, {names.threshold_name(gate): threshold for gate in range(9)})
    outputs = run(model, found.inputs, alone=alone)
    expected = Reference(found.model).run(found.inputs, rule)
    np.testing.assert_array_equal(outputs["keep_mask"], expected.keep_mask)
    assert outputs["keep_mask"][:, 8].all() == (kept == "all")
    assert outputs["keep_mask"][:, 8].any() == (kept == "all")
    np.testing.assert_allclose(outputs["logits"], expected.logits, rtol=0, atol=LOGITS)


# --- budgets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["60", "0.25", "150,100,30", "1"])
def test_a_budget_keeps_the_highest_margins(golden, export, budget):
    found = golden("svit_cls")
    config = found.model.config
    bundle = export("svit_cls", "budget", budget=budget)
    outputs = run(bundle, found.inputs)
    for gate, (budget_of_gate, rows) in enumerate(
        zip(bundle.budgets, bundle.budget_rows, strict=True)
    ):
        for image in range(len(found.inputs)):
            margin = outputs["margin"][image, gate]
            wanted = np.flatnonzero(margin > 0)
            best = wanted[np.argsort(-margin[wanted], kind="stable")][:rows]
            kept = np.flatnonzero(outputs["keep_mask"][image, gate])
            assert sorted(best) == kept.tolist()
            assert outputs["overflow"][image, gate] == max(0, len(wanted) - rows)
        gated = kept_counts(outputs["keep_mask"], config)[:, gate]
        assert gated.max() <= budget_of_gate
    # Nothing was cut before the first gate: the official code tells how much there was.
    counts = found.keep_mask[:, 0].sum(axis=1)
    assert outputs["overflow"][:, 0].tolist() == (counts - bundle.budget_rows[0]).clip(0).tolist()
    rule = keep_budget(keep_above(config.thresholds), bundle.budget_rows)
    expected = Reference(found.model).run(found.inputs, rule)
    np.testing.assert_array_equal(outputs["keep_mask"], expected.keep_mask)
    np.testing.assert_allclose(outputs["logits"], expected.logits, rtol=0, atol=LOGITS)


@pytest.mark.parametrize(
    ("text", "budgets"),
    [
        ("0.5", (98,) * 8 + (99,)),
        ("196", (196,) * 9),
        ("100,50,20", (100,) * 3 + (50,) * 3 + (20,) * 3),
        ("0.001", (1,) * 9),
    ],
)
def test_budgets_are_counts_or_ratios(golden, export, text, budgets):
    bundle = export("svit_cls", "budget", budget=text)
    assert bundle.budgets == budgets
    assert [gate["budget"] for gate in bundle.manifest["gates"]] == list(budgets)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "--budget 0.75,0.55,0.4"),
        ({"budget": "0"}, "out of range"),
        ({"budget": "197"}, "a count from 1 to 196"),
        ({"budget": "1.5"}, "out of range"),
        ({"budget": "-3"}, "out of range"),
        ({"budget": "0.5,0.4"}, "2 values for a model with 9 gates"),
        ({"budget": "many"}, "neither a count nor a ratio"),
        ({"budget": "nan"}, "neither a count nor a ratio"),
        ({"budget": ""}, "neither a count nor a ratio"),
        ({"budget": "auto"}, "--calibration"),
    ],
)
def test_budgets_that_cannot_work_are_refused(golden, tmp_path, settings, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        export_model(
            golden("svit_cls").model,
            tmp_path / "bundle",
            ExportSettings(tokens=TokenMode.BUDGET, **settings),
        )
    assert not list(tmp_path.iterdir())


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
    with pytest.raises(UsageError, match="a deit model has no gates"):
        export_model(golden("deit").model, tmp_path / "bundle", ExportSettings())


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


def test_without_gate_outputs(golden, export):
    found = golden("svit_cls")
    for mode in PRUNING:
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
    expected = Reference(found.model).run(found.inputs, keep_above(wanted))
    np.testing.assert_array_equal(outputs["keep_mask"], expected.keep_mask)
    assert (expected.keep_mask != found.keep_mask).any()
    np.testing.assert_allclose(outputs["logits"], expected.logits, rtol=0, atol=LOGITS)


@pytest.mark.parametrize("size", [(72, 56), (48, 100)])
def test_another_image_size(golden, tmp_path, size):
    """Positions are resized as DeiT does it, prefix rows left alone."""
    found = golden("svit_cls")
    grid = (size[0] // 4, size[1] // 4)
    model = replace(found.model, config=replace(found.model.config, image_size=size))
    bundle = export_model(model, tmp_path / "bundle", ExportSettings())
    table = torch.from_numpy(model.weights["pos_embed"])
    square = table[:, 1:].reshape(1, 14, 14, 48).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    resized = resized.flatten(2).transpose(1, 2).numpy()
    tensors = {tensor.name: tensor for tensor in bundle.load_model().graph.initializer}
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensors["patch_positions"]), resized)
    prefix = model.weights["cls_token"] + model.weights["pos_embed"][:, :1]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensors["prefix_tokens"]), prefix)
    inputs = bundle.load_reference()["images"]
    assert inputs.shape[2:] == size
    outputs, expected = run(bundle, inputs), Reference(model).run(inputs)
    assert outputs["keep_mask"].shape[2] == 1 + grid[0] * grid[1]
    np.testing.assert_array_equal(outputs["keep_mask"], expected.keep_mask)
    np.testing.assert_allclose(outputs["logits"], expected.logits, rtol=0, atol=LOGITS)


# --- what the files tell -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "mode"), [("svit_cls", "budget"), ("deit", "dense")])
def test_metadata(golden, export, name, mode):
    found, bundle = golden(name), export(name, mode)
    metadata = read_metadata(bundle.load_model())
    assert metadata["mode"] == mode
    assert metadata["method"] == found.model.config.family
    assert metadata["checkpoint_sha256"] == found.model.checkpoint.sha256
    assert json.loads(metadata["preprocess"])["mean"] == [0.485, 0.456, 0.406]
    gates = json.loads(metadata["gates"])
    assert gates == bundle.manifest["gates"]
    assert [gate["block"] for gate in gates] == list(found.model.config.gate_blocks)
    if gates:
        assert "tie is pruned" in metadata["gating"]
        assert gates[8]["sees_class_token"]
        measured = keep_ratios(found.keep_mask, found.model.config)
        np.testing.assert_allclose([g["measured_keep"] for g in gates], measured, atol=1e-6)


def test_no_file_tells_where_it_was_made(golden, tmp_path):
    found, output = golden("svit_cls"), tmp_path / "home" / "user" / "bundle"
    command = ("/opt/bin/svit-deploy", "export", str(found.model.checkpoint.path), f"-o={output}")
    model = replace(found.model, arch=str(tmp_path / "arch.yaml"))
    settings = ExportSettings(calibration=found.images)
    bundle = export_model(model, output, settings, command=command)
    places = [tmp_path, output, Path.cwd(), Path.home(), found.model.checkpoint.path.parent]
    for file in bundle.path.iterdir():
        content = file.read_bytes()
        for place in places:
            assert str(place).encode() not in content, (file.name, place)
    for text in read_metadata(bundle.load_model()).values():
        assert not re.search(r"(?:^|[\s\"'=])(?:/|[A-Z]:\\)\w", text), text
    assert bundle.manifest["arch"] == "arch.yaml"


def test_the_manifest_accounts_for_every_file(export):
    bundle = export("svit_cls", "budget")
    assert set(bundle.manifest["files"]) == {MODEL, REFERENCE}
    for name, entry in bundle.manifest["files"].items():
        content = (bundle.path / name).read_bytes()
        assert entry["size_bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()


def test_the_recorded_reference_is_the_official_one(golden, export):
    for name, mode in EXPORTS:
        found, recorded = golden(name), export(name, mode).load_reference()
        np.testing.assert_array_equal(recorded["images"], found.inputs)
        outputs = {key: recorded[key] for key in ("logits", "keep_mask", "margin")}
        if not found.model.config.num_gates:
            outputs = {"logits": outputs["logits"]}
        assert_as_recorded(found, outputs)


# --- the same bytes every time -----------------------------------------------------------------

EXPORT_SCRIPT = """
import sys
from pathlib import Path
from svit_deploy.model.config import TokenMode
from svit_deploy.methods import METHODS
from svit_deploy.export.onnx import ExportSettings, export_onnx
checkpoint, *outputs = map(Path, sys.argv[1:])
modes = METHODS['svit'].modes
for mode, output in zip(modes, outputs, strict=True):
    settings = ExportSettings(tokens=mode, budget="0.5" if mode is TokenMode.BUDGET else None)
    export_onnx(checkpoint, output, settings, overrides={"num_heads": "6"})
"""


def python(script, *arguments, **variables):
    """Starts another interpreter on a script."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_a_second_export_has_the_same_bytes(golden, tmp_path):
    """In this process, and in others that hash strings differently."""
    model = golden("svit_cls").model
    expected = []
    for mode in METHODS["svit"].modes:
        budget = "0.5" if mode is TokenMode.BUDGET else None
        settings = ExportSettings(tokens=mode, budget=budget)
        bundles = [export_model(model, tmp_path / f"{mode.value}-{i}", settings) for i in (1, 2)]
        first, second = (bundle.manifest["files"] for bundle in bundles)
        assert first == second
        expected.append(first)
    processes = []
    for seed in ("1", "2"):
        outputs = [tmp_path / f"seed-{seed}-{mode.value}" for mode in METHODS["svit"].modes]
        path = model.checkpoint.path
        processes.append((python(EXPORT_SCRIPT, path, *outputs, PYTHONHASHSEED=seed), outputs))
    for process, outputs in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert [open_bundle(output).manifest["files"] for output in outputs] == expected


# --- complete or absent ------------------------------------------------------------------------

STUCK_SCRIPT = f"""
import time
from svit_deploy.export import onnx
onnx.write_manifest = lambda *arguments: time.sleep(600)
{EXPORT_SCRIPT.replace("= METHODS['svit'].modes", "= [TokenMode.MASKED]")}
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize("force", [False, True])
def test_a_killed_export_leaves_no_bundle_and_the_next_one_cleans_up(golden, tmp_path, force):
    output = tmp_path / "bundle"
    model, settings = golden("svit_cls").model, ExportSettings(tokens=TokenMode.MASKED)
    script = STUCK_SCRIPT
    if force:
        before = export_model(model, output, ExportSettings()).manifest
        script = script.replace("overrides=", "force=True, overrides=")
    process = python(script, model.checkpoint.path, output)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".bundle.partial-*/model.onnx")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    process.stderr.close()
    assert process.returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".bundle.partial-*"))
    if force:
        assert open_bundle(output).manifest == before
    else:
        assert not output.exists()
    bundle = export_model(model, output, settings, force=force)
    assert bundle.mode is TokenMode.MASKED
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (RuntimeError("a bug"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), ExportError),
        (InputError("broken"), InputError),
    ],
)
@pytest.mark.parametrize("step", ["build_graph", "save_reference", "write_manifest"])
def test_a_failure_inside_leaves_nothing(golden, tmp_path, monkeypatch, step, raised, seen):
    def fail(*arguments):
        raise raised

    monkeypatch.setattr(onnx_export, step, fail)
    with pytest.raises(seen):
        export_model(golden("svit_cls").model, tmp_path / "a" / "bundle", ExportSettings())
    assert not list((tmp_path / "a").iterdir())


def test_force_replaces_a_bundle_and_nothing_else(golden, tmp_path, monkeypatch):
    model, output = golden("deit").model, tmp_path / "bundle"
    settings = ExportSettings(tokens=TokenMode.DENSE)
    output.mkdir()  # an empty folder is in nobody's way
    first = export_model(model, output, settings)
    with pytest.raises(ExportError, match=r"holds a bundle already.*--force"):
        export_model(model, output, settings)
    assert open_bundle(output).manifest == first.manifest
    second = export_model(model, output, replace(settings, opset=21), force=True)
    assert second.manifest["opset"] == 21
    assert list(tmp_path.iterdir()) == [output]

    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "build_graph", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_model(model, output, settings, force=True)
    assert open_bundle(output).manifest == second.manifest

    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter-1.txt").write_text("not to be lost")
    for force in (False, True):
        with pytest.raises(ExportError, match="is not a"):
            export_model(model, foreign, settings, force=force)
    assert (foreign / "chapter-1.txt").read_text() == "not to be lost"


def test_build_graph_needs_no_disk(golden):
    found = golden("svit_cls")
    model = build_graph(found.model, ExportSettings(), (), {"mode": "dynamic"})
    assert read_metadata(model) == {"mode": "dynamic"}
    assert_as_recorded(found, run(model, found.inputs))
