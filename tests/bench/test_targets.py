"""What `bench` is given: bundles, ONNX files, images, noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from svit_deploy import api
from svit_deploy.bench.inputs import Inputs
from svit_deploy.bench.labels import relabel, split_target
from svit_deploy.bench.settings import KEEP, WORST_CASE, BenchSettings, BenchTarget
from svit_deploy.bench.targets import check_targets, find_candidate, image_input
from svit_deploy.bench.variants import SWEEP, ForcedKeep
from svit_deploy.bundle.bundle import open_bundle
from svit_deploy.errors import InputError, UsageError
from svit_deploy.images.sets import load_images, synthetic_images
from svit_deploy.model.config import Preprocess
from tests.conftest import skip_without

pytest.importorskip("torch")

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
SETTINGS = BenchSettings(threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits model in token modes dense and dynamic, its pictures not as ImageNet's."""
    folder = tmp_path_factory.mktemp("targets")
    told = {"arch": str(DIGITS / "arch.yaml"), "overrides": {"mean": "0,0,0", "std": "1,1,1"}}
    for mode in ("dense", "dynamic"):
        api.export(DIGITS / "svit_digits.pth", folder / mode, tokens=mode, **told)
    return folder


@pytest.fixture(scope="module")
def pictures() -> Inputs:
    return Inputs(load_images(DIGITS / "heldout.npz", limit=6))


def bench_target(path: Path, inputs: Inputs, settings: BenchSettings) -> BenchTarget:
    (target,) = find_candidate(path, settings).prepare(inputs)
    return target


def test_bundle(folder, pictures):
    target = bench_target(folder / "dynamic", pictures, SETTINGS)
    assert (target.label, target.content_dependent) == ("dynamic", True)
    assert target.inputs.shape == (6, 3, 48, 48)
    assert target.inputs.min() >= 0 and target.inputs.max() <= 1
    assert list(target.variants) == [WORST_CASE, *(f"{KEEP}{share}" for share in SWEEP)]
    dense = bench_target(folder / "dense", pictures, SETTINGS)
    assert not dense.content_dependent and not dense.variants
    assert dense.inputs is target.inputs  # in memory once
    recorded = bench_target(folder / "dense", Inputs(), SETTINGS)
    assert recorded.inputs.shape == (16, 3, 48, 48)
    assert recorded.provenance.images == "recorded (synthetic)"


def test_onnx_file_of_ours_prepares_images_as_its_bundle_does(folder, pictures):
    of_bundle = bench_target(folder / "dynamic", pictures, SETTINGS)
    of_file = bench_target(folder / "dynamic" / "model.onnx", pictures, SETTINGS)
    assert of_file.inputs is of_bundle.inputs
    assert of_file.content_dependent
    assert of_file.keep_output == of_bundle.keep_output
    assert replace(of_file.provenance, model="") == replace(of_bundle.provenance, model="")


def test_all_kept_and_forced_shares(folder, pictures):
    target = bench_target(folder / "dynamic", pictures, SETTINGS)
    feeds = {target.input_name: target.inputs}
    with target.variants[WORST_CASE]() as engine:
        assert engine.run(feeds, ["keep_mask"])["keep_mask"].all()
    for share in SWEEP:
        with target.variants[f"{KEEP}{share}"]() as engine:
            assert isinstance(engine, ForcedKeep)
            assert [spec.name for spec in engine.inputs()] == ["images"]
            mask = engine.run(feeds, ["keep_mask"])["keep_mask"]
        assert (mask.sum(axis=2) == round(share * 65)).all()
        assert mask[:, :, 0].all()  # the class token
        assert (mask == mask[:1, :1]).all()


def test_forced_shares_leave_the_bundle_alone(folder, pictures):
    before = open_bundle(folder / "dynamic").model_sha256
    target = bench_target(folder / "dynamic", pictures, SETTINGS)
    with target.variants[WORST_CASE](), target.variants[f"{KEEP}0.1"]():
        pass
    assert open_bundle(folder / "dynamic").model_sha256 == before


def test_noise():
    inputs = Inputs(noise=True, count=5)
    noise = inputs.prepare(Preprocess(), (8, 16))
    assert (noise.shape, noise.dtype) == ((5, 3, 8, 16), np.float32)
    assert noise is inputs.prepare(Preprocess(), (8, 16))
    again = Inputs(noise=True, count=5).prepare(Preprocess(), (8, 16))
    np.testing.assert_array_equal(noise, again)
    with pytest.raises(UsageError, match="exclude each other"):
        Inputs(synthetic_images(1, (8, 8)), noise=True)
    with pytest.raises(UsageError, match="--allow-noise"):
        inputs.refuse_noise("it")
    Inputs(noise=True, allow_noise=True).refuse_noise("it")
    Inputs().refuse_noise("it")


def target(label: str, **options) -> BenchTarget:
    return BenchTarget(label, lambda: None, False, "x", np.zeros((1, 3, 2, 2)), **options)


@pytest.mark.parametrize(
    ("text", "path", "label", "engine", "precision"),
    [
        ("out/dense", "out/dense", "", None, None),
        ("out/dense@openvino", "out/dense", "@openvino", "openvino", None),
        ("out/dense@openvino:bf16", "out/dense", "@openvino:bf16", "openvino", "bf16"),
        ("out/dense/@openvino:f16", "out/dense", "@openvino:f16", "openvino", "fp16"),
        ("a@b/model.onnx@onnxruntime", "a@b/model.onnx", "@onnxruntime", "onnxruntime", None),
        ("a@b/dense", "a@b/dense", "", None, None),
    ],
)
def test_engine_and_precision_of_a_target(text, path, label, engine, precision):
    found, asked, settings = split_target(Path(text), SETTINGS)
    assert (found, asked, settings.engine) == (Path(path), label, engine)
    assert settings.engine_precision == precision


def test_what_follows_the_at_must_be_an_engine(tmp_path):
    for text, message in (
        ("out@tpu", "engine 'tpu' is unknown; use one of onnxruntime, openvino, tensorrt"),
        ("out@openvino:int8", "'int8' is unknown; use one of f32, f16, bf16"),
        ("out@onnxruntime:bf16", "bf16 has no meaning for onnxruntime"),
    ):
        with pytest.raises(UsageError, match=message):
            split_target(Path(text), SETTINGS)
    (tmp_path / "run@7").mkdir()
    assert split_target(tmp_path / "run@7", SETTINGS) == (tmp_path / "run@7", "", SETTINGS)


@pytest.mark.slow
def test_engines_side_by_side(folder, tmp_path, monkeypatch):
    skip_without("openvino")
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path))
    targets = ["dense@onnxruntime", "dynamic@openvino", "dynamic", "dynamic/model.onnx@openvino"]
    report = api.bench(
        [folder / target for target in targets],
        images=DIGITS / "heldout.npz",
        max_images=6,
        quick=True,
        threads=1,
    )
    assert [result.label for result in report.results] == [
        "dense@onnxruntime",
        "dynamic@openvino",
        "dynamic",
        "model@openvino",
    ]
    runtimes = [target.engine["runtime"] for target in report.targets]
    assert runtimes == ["onnxruntime", "openvino", "onnxruntime", "openvino"]
    on_openvino, on_onnxruntime = report.results[1:3]
    assert on_openvino.kept == on_onnxruntime.kept
    assert on_openvino.worst_case is not None
    assert on_openvino.speedup is not None


def test_labels_are_made_unique():
    labels = [t.label for t in relabel([target("a"), target("b"), target("a")])]
    assert labels == ["a#1", "b", "a#3"]


def test_comparison_needs_the_same_images():
    noise = Inputs(noise=True).provenance("m", "0", 1)
    one, two = (replace(noise, images_sha256=sha) for sha in "12")
    check_targets([target("a", provenance=one), target("b", provenance=one)], SETTINGS)
    check_targets([target("a"), target("b", provenance=noise)], SETTINGS)
    with pytest.raises(UsageError, match="--images"):
        check_targets([target("a", provenance=one), target("b", provenance=two)], SETTINGS)


def test_sweep_needs_a_target_that_can():
    sweep = BenchSettings(sweep_tokens=Path("sweep.png"))
    worst_only = target("a", variants={WORST_CASE: lambda: None})
    with pytest.raises(UsageError, match="token mode dynamic"):
        check_targets([worst_only], sweep)
    check_targets([worst_only, target("b", variants={f"{KEEP}0.5": lambda: None})], sweep)
    check_targets([worst_only], SETTINGS)


def model(
    *inputs: onnx.ValueInfoProto, weights: tuple[onnx.TensorProto, ...] = ()
) -> onnx.ModelProto:
    graph = helper.make_graph([], "test", inputs, [], weights)
    return helper.make_model(graph)


def value(name="x", kind=TensorProto.FLOAT, shape=("N", 3, 48, 64)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def test_image_input():
    path = Path("m.onnx")
    assert image_input(model(value("pixels")), path) == ("pixels", (48, 64))
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0])
    listed = model(value(), value("w", shape=[1]), weights=(weight,))
    assert image_input(listed, path) == ("x", (48, 64))  # as old exporters list weights
    for wrong, words in [
        (model(), "0 inputs"),
        (model(value(), value("y")), "2 inputs"),
        (model(value(kind=TensorProto.FLOAT16)), "'x' is not an image batch"),
        (model(value(shape=["N", 1, 48, 48])), "not an image batch"),
        (model(value(shape=["N", 48, 48, 3])), "not an image batch"),
        (model(value(shape=["N", 3])), "not an image batch"),
        (model(value(shape=["N", 3, "H", "W"])), "image size open"),
    ]:
        with pytest.raises(InputError, match=words):
            image_input(wrong, path)
