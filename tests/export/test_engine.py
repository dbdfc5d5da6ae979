"""From the command line's options to an engine in a bundle, and its verification, on fakes."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest

from svit_deploy import api
from svit_deploy.bundle.bundle import Bundle, open_bundle
from svit_deploy.cli import main
from svit_deploy.engines.batches import Batches
from svit_deploy.engines.tensorrt import build
from svit_deploy.engines.tensorrt.sidecar import read_sidecar
from svit_deploy.errors import CapabilityError, InputError, UsageError
from svit_deploy.verify.expected import LiveReference, StoredReference
from svit_deploy.verify.rounding import WHOLE
from svit_deploy.verify.run import verify_against
from svit_deploy.verify.settings import VerifySettings
from tests.engines.tensorrt.fake.cuda import Device
from tests.engines.tensorrt.fake.engines import install
from tests.told import SETTINGS, as_options, checkpoint_of

pytestmark = pytest.mark.slow

CHECKPOINT = checkpoint_of("svit_cls")
VERIFY = VerifySettings(threads=1, repeats=2)


@pytest.fixture
def engine_bundle(fake_process, tmp_path):
    """Exports a golden checkpoint with an engine of the fake library."""

    def export(name="out", source=CHECKPOINT, **options):
        if source == CHECKPOINT:
            options = {"budget": "1.0", "overrides": SETTINGS["svit_cls"], **options}
        known = {"target": "tensorrt", "batch": "1:2:8"}
        return api.export(source, tmp_path / name, **{**known, **options})

    return export


def test_an_engine_lies_in_the_bundle(engine_bundle):
    bundle = engine_bundle(precision="fp16", batch="1,2:4:8")
    assert bundle.mode.value == "budget"  # by default, for TensorRT
    sidecar = read_sidecar(bundle.engine_path)
    assert bundle.engine_path.name == bundle.manifest["engine"] == "model.fp16-trt10.16-sm90.engine"
    assert sidecar.onnx_sha256 == bundle.model_sha256
    assert (sidecar.precision, sidecar.tokens) == ("fp16", "budget")
    height, width = bundle.config.image_size
    assert [profile.max for profile in sidecar.profiles] == [
        (1, 3, height, width), (8, 3, height, width)
    ]  # fmt: skip
    assert bundle.manifest["batch"] == {"min": 1, "opt": 1, "max": 8}


def test_dynamic_tells_its_costs(engine_bundle, caplog):
    caplog.set_level(logging.INFO)
    bundle = engine_bundle(tokens="dynamic", budget=None)
    assert "each of the 9 gates makes the host wait" in caplog.text
    assert any("no CUDA graph" in note for note in bundle.manifest["notes"])


def test_a_bundle_is_built_again_elsewhere(engine_bundle, export, tmp_path):
    first = export("svit_cls", "budget")
    assert first.engine_path is None
    shutil.copytree(first.path, tmp_path / "copied")
    shape = "x".join(["{}", "3", *map(str, first.config.image_size)])
    low, typical, high = ([f"images:{shape.format(n)}"] for n in (2, 2, 4))
    built = engine_bundle(
        "rebuilt", tmp_path / "copied",
        batch=None, min_shapes=low, opt_shapes=typical, max_shapes=high,
    )  # fmt: skip
    assert built.manifest["batch"] == {"min": 2, "opt": 2, "max": 4}
    assert read_sidecar(built.engine_path).onnx_sha256 == first.model_sha256
    assert open_bundle(tmp_path / "copied").engine_path is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "onnx"}, "is a bundle already; give a checkpoint, or --target tensorrt or"),
        ({"precision": "fp16"}, "--precision cannot change the graph of a bundle"),
        ({"tokens": "masked"}, "--tokens cannot change the graph of a bundle"),
        ({"class_names": "x.txt"}, "--class-names cannot change the graph of a bundle"),
    ],
)
def test_what_a_bundle_cannot_be_asked(engine_bundle, export, options, words):
    with pytest.raises(UsageError, match=words):
        engine_bundle("other", export("svit_cls", "budget").path, **{"batch": None, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "tensorrt9"}, "--target 'tensorrt9' is unknown"),
        ({"target": "onnx", "workspace": "1GiB"}, "--workspace has no meaning without an engine"),
        ({"target": "onnx", "optimization_level": 3}, "--opt-level has no meaning without"),
        ({"target": "onnx", "device": 1}, "--device has no meaning without"),
        ({"workspace": "much"}, "--workspace 'much' is no size"),
        ({"optimization_level": 9}, "--opt-level 9 is out of range"),
        ({"min_shapes": ["images:1x3x8x8"]}, "do not make profiles"),
        ({"precision": "fp4"}, "--precision 'fp4' is unknown"),
        ({"plugins": True, "plugin_library": "missing.so"}, "missing.so is not a file"),
    ],
)
def test_options_that_cannot_work_leave_nothing(engine_bundle, tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        engine_bundle(**options)
    assert not (tmp_path / "out").exists()


def test_shapes_and_batch_exclude_each_other(engine_bundle):
    shapes = ["images:1x3x32x32"]
    with pytest.raises(UsageError, match="exclude each other"):
        engine_bundle(min_shapes=shapes, opt_shapes=shapes, max_shapes=shapes)


def test_a_profile_of_another_image_size(engine_bundle, tmp_path):
    shapes = ["images:1x3x999x32"]
    with pytest.raises(UsageError, match="another image size than the model's"):
        engine_bundle(batch=None, min_shapes=shapes, opt_shapes=shapes, max_shapes=shapes)
    assert not (tmp_path / "out").exists()


def test_plugins_need_their_library(engine_bundle, tmp_path):
    with pytest.raises(CapabilityError, match="svit-deploy plugins build"):
        engine_bundle(plugins=True)
    assert not (tmp_path / "out").exists()


def test_function_bodies_need_none(engine_bundle):
    bundle = engine_bundle(plugins=True, plugin_library="none")
    assert bundle.manifest["tokens"]["plugins"] is True
    assert read_sidecar(bundle.engine_path).plugins == ()


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "live"), [("fp32", False), ("fp16", True)])
def test_verify_runs_the_engine(engine_bundle, export, golden, monkeypatch, precision, live):
    graph = export("svit_cls", "budget", precision=precision)
    bundle = engine_bundle("out", graph.path, batch="2:2:4")
    install(monkeypatch, Device())
    found = golden("svit_cls")
    references = [StoredReference(bundle)]
    if live:
        references.append(LiveReference(bundle, found.model, found.images))
    for reference in references:
        report = verify_against(bundle, reference, VERIFY)
        assert report.passed, report.verdict
        assert report.engine["runtime"] == "tensorrt"
        assert {check.name for check in report.checks} >= {"gate decisions", "deterministic"}
    on_cpu = verify_against(bundle, references[0], replace(VERIFY, provider="cpu"))
    assert on_cpu.passed
    assert on_cpu.engine["runtime"] == "onnxruntime"


@pytest.mark.slow
@pytest.mark.parametrize("batch", [None, 1, 3, 7])
def test_evaluate_and_predict_run_the_engine(
    engine_bundle, export, golden, monkeypatch, tmp_path, batch
):
    """In batches of any size: the engine takes two to four."""
    bundle = engine_bundle("out", export("svit_cls", "budget").path, batch="2:2:4")
    install(monkeypatch, Device())
    found = golden("svit_cls")
    inputs = np.concatenate([found.inputs, found.inputs[::-1], found.inputs[:1]])
    labels = np.tile(found.logits.argmax(axis=1), 3)[:7]
    np.savez(tmp_path / "images.npz", images=inputs, labels=labels)
    options = {"images": tmp_path / "images.npz", "batch": batch, "threads": 1}
    by_engine = api.evaluate(bundle.path, **options)
    on_cpu = api.evaluate(bundle.path, provider="cpu", **options)
    assert by_engine.engine["runtime"] == "tensorrt" != on_cpu.engine["runtime"]
    assert by_engine.measures == on_cpu.measures and by_engine.images == 7
    assert by_engine.kept.gates == on_cpu.kept.gates
    assert len(by_engine.kept.gates) == 9
    (file,) = api.predict(bundle.path, tmp_path / "a.jsonl", **options)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["classes"][0]["label"] for row in rows[:3]] == labels[:3].tolist()


@pytest.mark.slow
def test_an_engine_that_flips_a_decision_is_held_to_its_graph(
    engine_bundle, export, golden, monkeypatch
):
    """A near tie that flips in every image must not hide what the engine does behind it."""
    monkeypatch.setitem(WHOLE, "fp16", 100)  # near enough in every image
    graph = export("svit_cls", "masked", precision="fp16")
    bundle = engine_bundle("out", graph.path, batch="1:2:4")
    install(monkeypatch, Device())

    class Flipped(Batches):
        def run(self, feeds, outputs=None):
            found = super().run(feeds, outputs)
            keep, margin = found["keep_mask"].copy(), found["margin"].copy()
            for image in range(len(keep)):
                token = np.abs(margin[image, -1]).argmin()
                keep[image, -1, token] ^= True
                margin[image, -1, token] = 1e-3 if keep[image, -1, token] else -1e-3
            logits = found["logits"] + np.float32(1)
            return found | {"keep_mask": keep, "margin": margin, "logits": logits}

    monkeypatch.setattr(Bundle, "with_rest", lambda bundle, engine: Flipped(engine, 1, 4))
    report = verify_against(bundle, StoredReference(bundle), VERIFY)
    checks = {check.name: check.passed for check in report.checks}
    assert checks["gate decisions"] and checks["logits"]
    assert not checks["engine follows its graph"]


def test_an_engine_of_another_model_is_refused(engine_bundle, export, monkeypatch):
    bundle = engine_bundle("out", export("svit_cls", "budget").path)
    bundle.engine_path.write_bytes(b"another plan")
    install(monkeypatch, Device())
    with pytest.raises(InputError, match="is not the file that was exported"):
        open_bundle(bundle.path)
    with pytest.raises(InputError, match="is not the engine that was built"):
        verify_against(bundle, StoredReference(bundle), VERIFY)


def test_it_is_built_on_the_gpu_that_is_asked_for(engine_bundle, export, monkeypatch):
    asked = []

    def environment(settings, scratch):
        asked.append(settings.device)
        return real(settings, scratch)

    real = build._environment
    monkeypatch.setattr(build, "_environment", environment)
    engine_bundle("out", export("svit_cls", "budget").path, device=3)
    assert asked == [3, 3]  # to look around, and to build


def test_the_command_line_says_what_was_built(fake_process, tmp_path, capsys):
    out = str(tmp_path / "out")
    arguments = ["export", str(CHECKPOINT), "-o", out, "--budget", "0.8"]
    arguments += as_options(SETTINGS["svit_cls"])
    arguments += ["--target", "tensorrt", "--precision", "fp16", "--batch", "1:2:4"]
    assert (
        main([*arguments, "--workspace", "1GiB", "--opt-level", "2", "--timing-cache", "none"]) == 0
    )
    shown = capsys.readouterr().out
    assert "model.fp16-trt10.16-sm90.engine" in shown
    assert "profiles 1x3x" in shown
    settings = read_sidecar(tmp_path / "out" / "model.fp16-trt10.16-sm90.engine").settings
    assert (settings["workspace_bytes"], settings["optimization_level"]) == (2**30, 2)
