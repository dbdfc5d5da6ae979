"""Which layers are quantised, and the steps that images choose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("torch")

from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import InputError, UsageError
from svit_deploy.export.pipeline import build_graph, export_model
from svit_deploy.export.quantised import choose_quantised, input_ranges, worst_layers
from svit_deploy.export.settings import ExportSettings
from svit_deploy.graph.edit import add_outputs
from svit_deploy.graph.quantised import (
    block_layers,
    deciding_layers,
    input_steps,
    with_exact_inputs,
    wrong_layers,
)
from svit_deploy.images import synthetic_images
from svit_deploy.images.prepared import Prepared
from svit_deploy.methods.families import family_of
from svit_deploy.model.config import TokenMode
from svit_deploy.model.precision import FORMATS, FP8, INT8
from svit_deploy.model.sizes import SizeRange
from svit_deploy.progress import SILENT
from svit_deploy.tasks import TASKS
from tests.contract.test_families import small_model

CLASSIFY = TASKS["classify"]
LAYERS = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")


def write(model, mode="dynamic", steps=(), form=INT8):
    images = synthetic_images(1, model.config.image_size)
    settings = ExportSettings(tokens=TokenMode(mode), precision=form.name, calibration=images)
    return build_graph(model, settings, (), SizeRange.single(model.config.image_size), {}, steps)


def choose(model, images, method, keep, form=INT8):
    sizes = SizeRange.single(model.config.image_size)
    graph = write(model)
    return choose_quantised(model, graph, CLASSIFY, form, images, sizes, method, keep, SILENT)


@pytest.fixture
def found(golden):
    return golden("svit_cls")


@pytest.fixture
def images(found):
    return [Prepared.whole(pixels) for pixels in found.inputs]


def test_the_layers_are_those_of_blocks(found):
    layers = block_layers(write(found.model))
    depth = found.model.config.depth
    assert sorted(layers) == sorted(f"blocks.{b}.{name}" for b in range(depth) for name in LAYERS)
    assert all(len(values) == 1 for values in layers.values())


@pytest.mark.parametrize(
    ("family", "mode", "kept"),
    [
        ("svit", "dynamic", set()),
        ("evit", "static", {"attn.q", "attn.k"}),
        ("ats", "dynamic", {"attn.q", "attn.k", "attn.v"}),
        ("tome", "static", {"attn.k"}),
    ],
)
def test_what_tokens_are_ranked_by_is_made_of_float32(family, mode, kept):
    model = small_model(family, "classify")
    values = family_of(model.config).method.values(model.config).items()
    margins = [name for name, (kind, _) in values if kind is np.float32]
    layers = deciding_layers(write(model, mode), margins)
    gated = model.config.gate_of
    assert layers == {f"blocks.{block}.{name}" for block in gated for name in kept}


@pytest.mark.parametrize(
    "method", ["minmax", "percentile", pytest.param("entropy", marks=pytest.mark.slow)]
)
def test_ranges_of_packed_rows(found, images, method):
    """Two images keep different numbers of tokens: there is no array of both."""
    graph = write(found.model)
    value = block_layers(graph)["blocks.5.mlp.fc1"][0]
    with OnnxRuntimeEngine(add_outputs(graph, [value]).SerializeToString()) as engine:
        shown = [engine.run(CLASSIFY.feeds([image]), [value])[value] for image in images]
    assert len({len(rows) for rows in shown}) > 1, "no case of packed rows"
    largest = max(float(np.abs(rows).max()) for rows in shown)
    (chosen,) = input_ranges(graph, [value], CLASSIFY, images, method).values()
    if method == "minmax":
        assert chosen == largest
    else:
        assert 0.3 * largest < chosen <= largest


def test_a_layer_that_no_image_reaches_stays_float32(golden, caplog):
    found = golden("svit_cls")
    config = replace(found.model.config, thresholds=(1e9,) * found.model.config.num_gates)
    model = replace(found.model, config=config)
    chosen = choose(model, found.images[:1], "percentile", 0)
    assert "so few may not show how large inputs become" in caplog.text
    first = min(model.config.gate_of)
    gated = [name for name in chosen.kept if int(name.split(".")[1]) >= first]
    assert gated
    assert set(chosen.kept) == set(gated)
    assert f"blocks.{first - 1}.mlp.fc2" in chosen.steps


def test_not_a_number_in_an_input(found, images):
    weights = dict(found.model.weights)
    weights["blocks.2.norm1.bias"] = np.full_like(weights["blocks.2.norm1.bias"], np.nan)
    graph = write(replace(found.model, weights=weights))
    value = block_layers(graph)["blocks.2.attn.q"][0]
    with pytest.raises(InputError, match="NaN or infinity on the calibration images"):
        input_ranges(graph, [value], CLASSIFY, images, "minmax")


@pytest.fixture
def outlier(found):
    """One layer whose rows have one weight each that makes all others round to nothing."""
    weights = dict(found.model.weights)
    name = "blocks.3.mlp.fc2.weight"
    weights[name] = weights[name].copy()
    weights[name][:, 0] = 200 * np.abs(weights[name]).max()
    bias = weights["blocks.3.mlp.fc1.bias"].copy()
    bias[0] = -20  # what the large weights are multiplied by is 0
    return replace(found.model, weights={**weights, "blocks.3.mlp.fc1.bias": bias})


@pytest.mark.slow
def test_the_layer_that_loses_most_is_kept(found, outlier, images):
    chosen = choose(outlier, found.images, "percentile", 1)
    assert chosen.kept == ("blocks.3.mlp.fc2",)
    steps = {"blocks.3.mlp.fc2": 0.05, "blocks.3.mlp.fc1": 0.05}
    assert worst_layers(outlier, CLASSIFY, INT8, images, steps, SILENT)[0] == "blocks.3.mlp.fc2"


def test_some_layer_must_be_left(found):
    with pytest.raises(UsageError, match="--int8-keep 72 leaves none of 72 linear layers"):
        choose(found.model, found.images, "minmax", 72)


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_the_graph_multiplies_eight_bits_and_decides_in_float32(found, form):
    steps = {f"blocks.{b}.{name}": 0.05 + b / 100 for b in range(12) for name in LAYERS[:5]}
    model = write(found.model, steps=steps, form=form)
    told = {name: (np.float32(step),) * 2 for name, step in steps.items()}
    assert input_steps(model) == told
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name in steps:
        weight, step = tensors[f"{name}.weight"], tensors[f"{name}.weight.step"]
        assert weight.dtype.name == {"int8": "int8", "fp8": "float8_e4m3fn"}[form.name]
        assert (np.abs(weight.astype(np.float32)).max(axis=1) == form.largest).all()
        assert step.shape == (len(weight),)
        assert tensors[f"{name}.bias"].dtype == np.float32
    for name in ("blocks.0.mlp.fc2.weight", "head.weight", "gate_0.threshold"):
        assert tensors[name].dtype == np.float32
    rounds = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len({node.output[0] for node in rounds}) == len(steps), "each for itself"
    assert not any("gate" in node.name or "head" in node.name for node in rounds)
    zeros = {float(tensors[node.input[2]]) for node in rounds}
    assert zeros == {0}, "TensorRT takes no other"
    assert model.opset_import[0].version == 20
    assert wrong_layers(model, form, steps) == []
    name, others = "blocks.3.mlp.fc1", dict(steps)
    del others[name]
    assert wrong_layers(model, form, others) == [f"{name} is quantised"]
    assert wrong_layers(model, form, {**steps, "blocks.3.mlp.fc2": 1.0}) == [
        "blocks.3.mlp.fc2 multiplies float32"
    ]
    (other,) = set(FORMATS.values()) - {form}
    said = wrong_layers(model, other, steps)
    assert len(said) == len(steps) and all(one.endswith(f", not {other.name}") for one in said)
    exact = with_exact_inputs(model)
    assert not any(node.op_type == "QuantizeLinear" for node in exact.graph.node)
    onnx.checker.check_model(exact, full_check=True)


def test_float8_is_rounded_to_the_nearest_number_that_there_is(found):
    """Each weight, to an even last bit in a tie; computed here of the format's definition."""
    name = "blocks.0.attn.proj"
    model = write(found.model, steps={name: 0.01}, form=FP8)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    given = found.model.weights[f"{name}.weight"] / tensors[f"{name}.weight.step"][:, None]
    _, exponent = np.frexp(given)
    unit = 2.0 ** (np.maximum(exponent - 1, -6) - 3)  # three bits of mantissa; subnormal below 2^-6
    wanted = np.rint(given / unit) * unit
    assert len(np.unique(np.abs(wanted))) > 60, "few of its 127 sizes"
    np.testing.assert_array_equal(tensors[f"{name}.weight"].astype(np.float64), wanted)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": "int8"}, "--precision int8 needs images"),
        ({"precision": "fp8"}, "--precision fp8 needs images"),
        ({"int8_keep": 2}, "--int8-keep has no meaning with --precision fp32"),
        ({"calibration_method": "minmax"}, "--calibration-method has no meaning"),
        (
            {"precision": "int8", "calibration": "x", "calibration_method": "mean"},
            "--calibration-method 'mean' is unknown",
        ),
        (
            {"precision": "int8", "calibration": "x", "int8_keep": -1},
            "--int8-keep -1 is negative",
        ),
        (
            {"precision": "fp8", "calibration": "x", "calibration_method": "entropy"},
            "entropy is for evenly spaced numbers, which those of fp8 are not",
        ),
    ],
)
def test_settings_that_cannot_work(settings, words):
    with pytest.raises(UsageError, match=words):
        ExportSettings(**settings)


@pytest.mark.parametrize("precision", FORMATS)
def test_a_whole_detector_is_refused(precision):
    with pytest.raises(UsageError, match=f"nobody has measured what {precision} does"):
        TASKS["detect"].check_precision(precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", FORMATS)
def test_the_manifest_tells_the_steps(found, tmp_path, precision):
    settings = ExportSettings(precision=precision, calibration=found.images)
    bundle = export_model(found.model, tmp_path / "out", settings)
    assert bundle.precision == precision
    assert bundle.manifest["quantised"]["method"] == "percentile"
    assert len(bundle.steps) == 72
    assert input_steps(bundle.load_model()) == {n: (s, s) for n, s in bundle.steps.items()}
    again = export_model(found.model, tmp_path / "again", settings)
    assert again.model_sha256 == bundle.model_sha256
