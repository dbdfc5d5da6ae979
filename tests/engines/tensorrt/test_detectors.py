"""Detection models as TensorRT engines: on the fake library that computes, and built for real."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("torchvision")

from svit_deploy import api, names
from svit_deploy.bench.settings import BenchSettings
from svit_deploy.bundle.bundle import MODEL, Bundle
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.engines.settings import EngineChoice
from svit_deploy.engines.tensorrt.sidecar import read_sidecar
from svit_deploy.errors import InputError, UsageError
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.graph.ranking import MOST_OF_TOPK
from svit_deploy.inference.engine import open_bundle_engine
from svit_deploy.model.model import Model
from svit_deploy.options import read_options
from svit_deploy.tasks import TASKS
from svit_deploy.tasks.detect.detections import OUTPUTS
from svit_deploy.tasks.detect.graph import cut_names
from svit_deploy.tasks.detect.split import HEADS, SplitDetector, split_graph
from svit_deploy.verify.expected import LiveReference, StoredReference
from svit_deploy.verify.rounding import WHOLE
from svit_deploy.verify.run import verify_against
from svit_deploy.verify.settings import VerifySettings
from tests.engines.fake_onnxruntime import install_providers
from tests.engines.tensorrt.fake.cuda import Device
from tests.engines.tensorrt.fake.engines import install
from tests.shortened import shortened
from tests.told import SETTINGS

pytestmark = pytest.mark.slow

SIZES = "64x64:96x128:256x256"
CHECKPOINTS = {"backbone": "svit_adapter", "detect": "svit_mask_rcnn"}
VERIFY = VerifySettings(threads=1, repeats=2)
QUICK = BenchSettings(warmup_s=0, duration_s=0, min_samples=4, threads=1)
RTX = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed: pip install 'svit-deploy[tensorrt-rtx]'",
)


@pytest.fixture(scope="session")
def model(detection_golden: Any) -> Callable[[str], Model]:
    """A golden for a task, with one interaction of its four."""

    @cache
    def make(task: str) -> Model:
        golden = detection_golden(CHECKPOINTS[task])
        return shortened(golden.detector if task == "detect" else golden.backbone)

    return make


@pytest.fixture(scope="module")
def graph(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """Its graph for engines, which take one image at a time; each exported once."""

    @cache
    def make(
        task: str, mode: str = "budget", batch: str = "1", sizes: str = SIZES, **options: Any
    ) -> Bundle:
        budget = "0.9,0.7,0.5" if mode == "budget" else None
        known = {"task": task, "tokens": mode, "batch": batch, "budget": budget, **options}
        folder = tmp_path_factory.mktemp(f"{task}-{mode}")
        return export_model(
            model(task), folder / "bundle", read_options(ExportSettings, None, known),
            sizes=TASKS[task].parse_sizes(sizes),
        )  # fmt: skip

    return make


@pytest.fixture
def on_fake(
    graph: Any, fake_process: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Bundle]:
    """A golden with an engine of the fake library, which runs it afterwards."""

    def make(task: str, mode: str = "budget", batch: str = "1", **options: Any) -> Bundle:
        exported = graph(task, mode, batch, **options)
        bundle = api.export(exported.path, tmp_path / "bundle", target="tensorrt", batch=batch)
        install(monkeypatch, Device())
        return bundle

    return make


@pytest.mark.parametrize(
    ("task", "mode", "batch", "options", "live"),
    [
        ("backbone", "budget", "1", {}, False),
        ("backbone", "dense", "1:1:2", {}, True),
        ("backbone", "dynamic", "1", {"gate_outputs": False}, False),
        ("detect", "budget", "1:1:2", {}, True),
        ("detect", "dense", "1", {"precision": "fp16"}, False),
        ("detect", "masked", "1", {"gate_outputs": False}, False),
    ],
)
def test_verify_runs_the_engine(
    model: Any,
    on_fake: Any,
    task: str,
    mode: str,
    batch: str,
    options: dict[str, Any],
    live: bool,
) -> None:
    """Against what was recorded, and where `live` against the model too."""
    bundle = on_fake(task, mode, batch, **options)
    references = [StoredReference(bundle)]
    if live:
        references.append(LiveReference(bundle, model(task)))
    for reference in references:
        report = verify_against(bundle, reference, VERIFY)
        assert report.passed, report.verdict
        runs_engine = mode == "dense" or bundle.has_gate_outputs
        assert report.engine["runtime"] == ("tensorrt" if runs_engine else "onnxruntime")
        if task == "detect":
            assert report.to_dict()["results"]["detections"]["matched"] > 0
            assert any("does not show its feature maps" in n for n in report.notes) == runs_engine
        else:
            assert len(report.to_dict()["results"]["features"]) == 4


def test_a_wrong_engine_is_refused(on_fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One decision flipped in what the engine gives; and its boxes shifted."""
    bundle = on_fake("detect", batch="1:1:2")

    class Wrong(SplitDetector):
        change: Callable[[dict[str, np.ndarray]], None]

        def run(self, feeds: Any, outputs: Any = None) -> dict[str, np.ndarray]:
            found = super().run(feeds, outputs)
            type(self).change(found)
            return found

    def flip(found: dict[str, np.ndarray]) -> None:
        if names.KEEP_MASK in found:
            found[names.KEEP_MASK] = found[names.KEEP_MASK].copy()
            found[names.KEEP_MASK][0, 2, 5] ^= True

    def shift(found: dict[str, np.ndarray]) -> None:
        if "boxes" in found:
            found["boxes"] = found["boxes"] + np.float32(0.5)

    for change, check in ((flip, "keep mask follows the margins"), (shift, "detections")):
        Wrong.change = staticmethod(change)
        monkeypatch.setattr(Bundle, "with_rest", lambda b, e: Wrong(e, b.path / HEADS))
        report = api.verify(bundle.path, VERIFY)
        assert not report.passed
        assert check in [c.name for c in report.checks if not c.passed]


def test_an_engine_that_flips_a_decision_is_held_to_its_graph(
    on_fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A near tie that flips in every image must not hide what the engine does behind it."""
    monkeypatch.setitem(WHOLE, "fp16", 1000)  # near enough in every image
    bundle = on_fake("detect", "masked", precision="fp16")

    class Flipped(SplitDetector):
        def run(self, feeds: Any, outputs: Any = None) -> dict[str, np.ndarray]:
            found = super().run(feeds, outputs)
            keep, margin = found[names.KEEP_MASK].copy(), found[names.MARGIN].copy()
            for image in range(len(keep)):
                token = np.abs(margin[image, -1]).argmin()
                keep[image, -1, token] ^= True
                margin[image, -1, token] = 1e-3 if keep[image, -1, token] else -1e-3
            return found | {names.KEEP_MASK: keep, names.MARGIN: margin} | self.wrong(found)

        def wrong(self, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"boxes": found["boxes"] + np.float32(5)}

    monkeypatch.setattr(Bundle, "with_rest", lambda b, e: Flipped(e, b.path / HEADS))
    report = api.verify(bundle.path, VERIFY)
    checks = {check.name: check.passed for check in report.checks}
    assert checks["gate decisions"] and checks["detections"], report.verdict
    assert not checks["engine follows its graph"]
    assert any(
        f"{n} of {n} images flipped" in note for note in report.notes for n in [report.images]
    )


def test_both_parts_compute_what_the_whole_does(graph: Any, tmp_path: Path) -> None:
    bundle = graph("detect", batch="1:1:2")
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / MODEL).write_bytes(bundle.model_path.read_bytes())
    with split_graph(folder, MODEL) as front:
        assert {i.name for i in onnx.load(front).graph.input} == {names.INPUT}
        engine = OnnxRuntimeEngine(front, threads=1)
    assert sorted(path.name for path in folder.iterdir()) == sorted([HEADS, MODEL])
    images = [image for part in bundle.load_samples()[:2] for image in part.images]
    feeds = bundle.task.feeds(images)
    with OnnxRuntimeEngine(bundle.model_path, threads=1) as whole:
        expected = whole.run(feeds)
    with SplitDetector(engine, folder / HEADS) as parts:
        assert {spec.name for spec in parts.outputs()} == set(expected)
        found = parts.run(feeds)
        assert len(found["scores"]) > 0
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=1e-4, rtol=1e-5, err_msg=name)
        assert set(parts.run(feeds, ["scores"])) == {"scores"}
        assert set(parts.run(feeds, [names.KEEP_MASK])) == {names.KEEP_MASK}
        assert not set(cut_names()) & {spec.name for spec in parts.outputs()}
        with pytest.raises(InputError, match="scale_factors"):
            parts.run({names.INPUT: feeds[names.INPUT], "image_sizes": feeds["image_sizes"]})


@pytest.mark.parametrize("task", ["backbone", "detect"])
def test_bench_and_predict_run_the_engine(on_fake: Any, tmp_path: Path, task: str) -> None:
    bundle = on_fake(task)
    picture = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    report = api.bench([bundle.path, bundle.engine_path], images=tmp_path / "picture.png",
                       settings=QUICK)  # fmt: skip
    for target in report.targets:
        assert target.engine["runtime"] == "tensorrt"
        assert ("heads" in target.engine) == (task == "detect")
    files = api.predict(bundle.path, tmp_path / "found", images=tmp_path / "picture.png")
    assert (tmp_path / "found" / "predictions.json") in files


def test_the_heads_say_where_they_run(
    detection_golden: Any,
    fake_process: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of a checkpoint that is exported and built at once."""
    bundle = api.export(
        detection_golden(CHECKPOINTS["detect"]).path, tmp_path / "bundle",
        task="detect", target="tensorrt", tokens="dense", image_size=SIZES,
        overrides=SETTINGS[CHECKPOINTS["detect"]],
    )  # fmt: skip
    install(monkeypatch, Device())
    caplog.set_level(logging.INFO)
    with open_bundle_engine(bundle, EngineChoice()) as engine:
        heads = engine.description["heads"]
        assert heads["runtime"] == "onnxruntime"
        on_cpu = heads["provider"] == "CPUExecutionProvider"
        warned = [record for record in caplog.records if "heads run on the CPU" in record.message]
        assert len(warned) == on_cpu and all(one.levelname == "WARNING" for one in warned)
        assert {spec.name for spec in engine.outputs()} >= set(OUTPUTS)


@pytest.mark.parametrize("batch", ["1", "1:1:2"])
def test_the_maps_stay_on_the_gpu(
    on_fake: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, batch: str
) -> None:
    """From the engine to the heads, where these run on it too; and verify sees no difference."""
    bundle = on_fake("detect", batch=batch)
    images = [image for part in bundle.load_samples()[:1] for image in part.images][:2]
    feeds = bundle.task.feeds(images)
    found = []
    for on_gpu in (False, True):
        device = Device()
        install(monkeypatch, device)
        if on_gpu:
            told = install_providers(monkeypatch, device)
        caplog.clear()
        with open_bundle_engine(bundle, EngineChoice()) as engine:
            for _ in range(3):
                device.calls.clear()
                found.append(engine.run(feeds, OUTPUTS))
            copies, about = device.calls.count("cudaMemcpyAsync"), engine.description
            times = engine.last_times
        assert ("heads run on the CPU: " in caplog.text) == (not on_gpu)
        assert ("heads run on the CPU" in (about["maps_through_host"] or "")) == (not on_gpu)
        assert not any(device.open.values())
        many = len(images) > int(batch[-1])  # then the engine runs image by image
        if not on_gpu:
            assert copies == (1 + len(cut_names())) * (len(images) if many else 1)
            assert times.gpu_ms == 2
        elif not many:  # what is fed, and what is found
            assert copies == 3 + len(OUTPUTS)
            assert (times.gpu_ms, times.d2h_ms) == (4, len(OUTPUTS) * device.copy_ms)
    for name, expected in found[0].items():
        assert all(one[name].tobytes() == expected.tobytes() for one in found), name
    assert api.verify(bundle.path, VERIFY).passed and told.providers


def test_a_bundle_gets_an_engine_afterwards(on_fake: Any, graph: Any) -> None:
    assert graph("detect").engine_path is None
    built = on_fake("detect")
    assert built.engine_path is not None and HEADS in built.manifest["files"]
    (profile,) = read_sidecar(built.engine_path).profiles
    assert (profile.min, profile.opt, profile.max) == (
        (1, 3, 64, 64), (1, 3, 96, 128), (1, 3, 256, 256)
    )  # fmt: skip
    assert api.verify(built.path, VERIFY).passed
    (built.path / HEADS).unlink()
    with pytest.raises(InputError, match=r"heads\.onnx is missing from the bundle"):
        api.verify(built.path)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("images:1x3x96x100", "96x100 pixels is not a multiple of 32"),
        ("images:1x3x96x512", "is 512 wide, and the model was exported for 64 to 256"),
    ],
)
def test_profiles_that_the_graph_cannot_serve(
    graph: Any, fake_process: Any, tmp_path: Path, shape: str, words: str
) -> None:
    shapes = {f"{kind}_shapes": [shape] for kind in ("min", "opt", "max")}
    with pytest.raises(UsageError, match=words):
        api.export(graph("backbone").path, tmp_path / "bundle", target="tensorrt", **shapes)
    assert not (tmp_path / "bundle").exists()


def test_plugins_stand_for_the_same_row_moves(detection_golden: Any, graph: Any) -> None:
    image = detection_golden(CHECKPOINTS["backbone"]).arrays["input_96x128"][:1]
    for mode in ("dynamic", "budget"):
        found = []
        for plugins in (False, True):
            bundle = graph("backbone", mode, plugins=plugins)
            with OnnxRuntimeEngine(bundle.model_path, threads=1) as engine:
                found.append(engine.run({names.INPUT: image}))
            nodes = {node.op_type for node in bundle.load_model().graph.node}
            assert ("SvitGather" in nodes) == plugins
            assert not (plugins and {"NonZero", "ScatterND"} & nodes)
        plain, plugin = found
        assert all(plain[name].tobytes() == plugin[name].tobytes() for name in plain)


@RTX
@pytest.mark.parametrize("sizes", ["64x64:96x128:1344x1344", "1344x1344"])
def test_more_tokens_than_topk_gives_build(graph: Any, tmp_path: Path, sizes: str) -> None:
    """A budget of 0.9 of the 7056 tokens of the largest image, free and baked in."""
    exported = graph("backbone", "budget", sizes=sizes)
    build = {"target": "tensorrt-rtx", "batch": "1", "optimization_level": 0}
    bundle = api.export(exported.path, tmp_path / "bundle", **build)
    assert read_sidecar(bundle.engine_path).profiles[0].max == (1, 3, 1344, 1344)
    counts = [node.op_type for node in bundle.load_model().graph.node].count("TopK")
    assert counts == sum(-(-budget.rows(7056) // MOST_OF_TOPK) for budget in bundle.budgets) > 3


@RTX
@pytest.mark.parametrize(
    ("task", "mode", "precision", "sizes"),
    [
        ("backbone", "budget", "fp32", SIZES),
        ("backbone", "budget", "fp16", "96x128"),
        ("backbone", "dense", "fp16", "96x128"),
        ("detect", "budget", "fp16", SIZES),
    ],
)
def test_real_builds(
    graph: Any, tmp_path: Path, task: str, mode: str, precision: str, sizes: str
) -> None:
    exported = graph(task, mode, precision=precision, sizes=sizes)
    bundle = api.export(
        exported.path, tmp_path / "bundle",
        target="tensorrt-rtx", timing_cache="none", batch="1", optimization_level=0,
    )  # fmt: skip
    sidecar = read_sidecar(bundle.engine_path)
    layers = sidecar.settings["layers"]
    assert layers["total"] > 50 and layers["host_copies"] == 0
    assert (sidecar.precision, sidecar.tokens) == (precision, mode)
    assert (HEADS in bundle.manifest["files"]) == (task == "detect")
    if task == "detect":
        assert api.verify(bundle.path, VERIFY, provider="cpu").passed  # its graph
