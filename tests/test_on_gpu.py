"""Exported models on NVIDIA GPUs: ONNX Runtime's providers, TensorRT engines and plugins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy import api, names
from svit_deploy.bundle.bundle import Bundle, open_bundle
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine, require_provider
from svit_deploy.engines.providers import CUDA, full_provider_name
from svit_deploy.engines.settings import EngineChoice
from svit_deploy.engines.tensorrt.gpu import check_products, find_gpu
from svit_deploy.engines.tensorrt.runner import TensorRTEngine
from svit_deploy.engines.tensorrt.sidecar import read_sidecar
from svit_deploy.errors import CapabilityError
from svit_deploy.inference.engine import open_bundle_engine
from svit_deploy.machine.tensorrt import TARGETS, load_library
from svit_deploy.model.precision import FORMATS
from svit_deploy.plugins import library_path
from svit_deploy.tasks import task_named
from svit_deploy.tasks.detect import split
from tests.told import SETTINGS, checkpoint_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(find_gpu() is None, reason="no NVIDIA GPU"),
]
MODES = ("dynamic", "budget", "masked", "dense")
STATIC = MODES[1:]
PRECISIONS = ("fp32", "fp16", "bf16", *FORMATS)
DETECTION = {"backbone": "svit_adapter", "detect": "svit_mask_rcnn"}
TASKS = ("classify", *DETECTION)


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., Bundle]:
    """Exports a golden of a task; skips what the task or the GPU does without."""
    calibration = tmp_path / "calibration.npz"
    pictures = np.random.default_rng(0).integers(0, 256, (8, 96, 128, 3), np.uint8)
    np.savez(calibration, images=pictures)
    gpu = find_gpu()

    def make(task: str, mode: str, **options: Any) -> Bundle:
        precision = options.get("precision", "fp32")
        if precision not in task_named(task).limits:
            pytest.skip(f"--task {task} is not exported in {precision}")
        if gpu is not None and "target" in options:
            try:
                check_products(gpu, precision)
            except CapabilityError as error:
                pytest.skip(error.message)
        name, sizes = "svit_cls", {}
        if task in DETECTION:
            pytest.importorskip("torchvision")
            name, sizes = DETECTION[task], {"image_size": "64x64:96x128:256x256"}
        if mode == "budget":
            options["budget"] = "1.0"
        if precision in FORMATS:
            options["calibration"] = calibration
        checkpoint = checkpoint_of(name)
        common = {"task": task, "tokens": mode, "overrides": SETTINGS[name], **sizes}
        return api.export(checkpoint, tmp_path / "bundle", **common, **options)

    return make


@pytest.fixture(params=list(TARGETS))
def target(request: pytest.FixtureRequest) -> str:
    """Each TensorRT that is installed."""
    try:
        load_library(request.param)
    except CapabilityError as error:
        pytest.skip(error.message)
    return str(request.param)


@pytest.fixture(params=["cuda", "tensorrt", "nv-tensorrt-rtx"])
def provider(request: pytest.FixtureRequest) -> str:
    """Each of NVIDIA's providers that starts."""
    require_or_skip(request.param)
    return str(request.param)


def require_or_skip(provider: str) -> None:
    try:
        require_provider(provider)
    except CapabilityError as error:
        pytest.skip(error.message)


@pytest.fixture
def plugins() -> Path:
    """The plugin library that was built here."""
    try:
        return library_path()
    except CapabilityError as error:
        pytest.skip(error.message)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("mode", MODES)
def test_provider(
    export: Callable[..., Bundle], provider: str, task: str, mode: str, precision: str
) -> None:
    report = api.verify(export(task, mode, precision=precision).path, provider=provider)
    assert report.passed, report.verdict
    assert report.engine["provider"] == full_provider_name(provider)


@pytest.mark.parametrize("mode", MODES)
def test_all_of_a_graph_runs_on_the_gpu(
    export: Callable[..., Bundle], provider: str, mode: str
) -> None:
    """What TensorRT does not take, CUDA does: the CPU is left shapes and counts at most."""
    bundle = export("classify", mode)
    with OnnxRuntimeEngine(bundle.model_path, provider=provider) as engine:
        nodes = engine.description["nodes"]
    if nodes is None:
        pytest.skip("this ONNX Runtime does not tell which nodes went where")
    on_gpu = nodes.get(full_provider_name(provider), 0) + nodes.get(CUDA, 0)
    assert on_gpu > 0.8 * sum(nodes.values()), nodes


def test_float32_stays_float32_on_cuda(export: Callable[..., Bundle], provider: str) -> None:
    """TF32 would be off by 1e-3."""
    bundle = export("classify", "dense")
    x = np.random.default_rng(0).standard_normal((2, 3, *bundle.config.image_size), np.float32)
    found = []
    for chosen in ("cpu", provider):
        with OnnxRuntimeEngine(bundle.model_path, provider=chosen) as engine:
            found.append(engine.run({names.INPUT: x}, [names.LOGITS])[names.LOGITS])
    np.testing.assert_allclose(found[1], found[0], atol=2e-5 * np.abs(found[0]).max())


@pytest.mark.parametrize("cuda_graph", ["auto", "off"])
@pytest.mark.parametrize("mode", MODES)
def test_onnx_runtime_in_memory_of_ours(
    export: Callable[..., Bundle], provider: str, mode: str, cuda_graph: str
) -> None:
    """On our stream: as the CPU computes, and on `cuda` with graphs where nothing waits."""
    bundle = export("classify", mode)
    with (
        OnnxRuntimeEngine(bundle.model_path, provider=provider, cuda_graph=cuda_graph) as engine,
        OnnxRuntimeEngine(bundle.model_path) as cpu,
    ):
        told = engine._session.get_provider_options()  # what they made of our options
        streams = {
            name: one["user_compute_stream"] for name, one in told.items() if "CPU" not in name
        }
        assert len(set(streams.values())) == 1 and int(streams[full_provider_name(provider)]) > 0
        assert told[CUDA]["use_tf32"] == "0"
        graphs = []
        for count in (2, 2, 2, 5, 1, 1, 1, 2, 2, 2, 5):
            x = np.random.default_rng(len(graphs)).standard_normal(
                (count, 3, *bundle.config.image_size), np.float32
            )
            found, expected = (one.run({names.INPUT: x}) for one in (engine, cpu))
            scale = np.abs(expected[names.LOGITS]).max()
            np.testing.assert_allclose(
                found[names.LOGITS], expected[names.LOGITS], atol=1e-4 * scale
            )
            times = engine.last_times
            assert times is not None
            assert min(times.gpu_ms, times.h2d_ms, times.d2h_ms, times.enqueue_ms) > 0
            graphs.append(times.graph)
        about = engine.description["cuda_graph"]
        print(about, graphs)
    static = mode != "dynamic" and cuda_graph == "auto" and provider == "cuda"
    assert about["used"] == any(graphs) == (static and about["reason"] is None)
    if not static:
        assert about["reason"]


@pytest.mark.parametrize("mode", ["budget", "dynamic"])
def test_several_runs_of_onnx_runtime_in_flight(
    export: Callable[..., Bundle], provider: str, mode: str
) -> None:
    bundle = export("classify", mode)
    x = np.zeros((4, 3, *bundle.config.image_size), np.float32)
    with OnnxRuntimeEngine(bundle.model_path, provider=provider) as engine:
        alone = engine.run({names.INPUT: x})
        flight = engine.fly([{names.INPUT: x}], None, 64, 3)
        again = engine.run({names.INPUT: x})
    assert flight is not None and flight.runs == 64 and 0 < flight.device_ms < 1e3
    for name, array in alone.items():
        np.testing.assert_array_equal(again[name], array)


def test_the_maps_of_a_detector_stay_on_the_gpu(
    export: Callable[..., Bundle], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heads read them where the engine left them, and find what the heads on the CPU find."""
    require_or_skip("cuda")
    bundle = export("detect", "budget", target=target, batch="1")
    images = [image for part in bundle.load_samples() for image in part.images][:3]
    found: list[Any] = []
    for on_gpu in (True, False):
        if not on_gpu:
            cpu = lambda path, gpu: (OnnxRuntimeEngine(path), "as asked")  # noqa: E731
            monkeypatch.setattr(split, "_open_heads", cpu)
        with open_bundle_engine(bundle, EngineChoice()) as engine:
            found.append([engine.run(bundle.task.feeds([image])) for image in images])
            assert (engine.description["maps_through_host"] is None) == on_gpu
            print(engine.last_times, engine.description["heads"].get("nodes"))
    for one, other in zip(*found, strict=True):
        assert one["scores"].shape == other["scores"].shape
        for name in ("boxes", "scores"):
            np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=1e-2)


def test_engines_of_a_range_of_sizes_capture_or_say_why_not(target: str, tmp_path: Path) -> None:
    """TensorRT-RTX allocates while such an engine runs; of one size it must not."""
    pytest.importorskip("torchvision")
    for number, size in enumerate(("64x64:96x128:256x256", "96x128")):
        bundle = api.export(
            checkpoint_of("svit_adapter"), tmp_path / f"bundle{number}",
            task="backbone", tokens="budget", budget="1.0", image_size=size, target=target,
            batch="1", overrides=SETTINGS["svit_adapter"],
        )  # fmt: skip
        assert bundle.engine_path is not None
        with TensorRTEngine(bundle.engine_path) as engine:
            x = np.random.default_rng(0).standard_normal((1, 3, 96, 128), np.float32)
            plain = engine.run({names.INPUT: x})
            again = engine.run({names.INPUT: x})
            about = engine.description["cuda_graph"]
        print(size, about)
        assert about["used"] or (about["reason"] and ":" in size)
        for name, array in plain.items():
            np.testing.assert_array_equal(again[name], array)


def test_what_a_provider_builds_is_found_again(
    export: Callable[..., Bundle], provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if provider == "cuda":
        pytest.skip("it builds nothing")
    monkeypatch.delenv("SVIT_DEPLOY_CACHE", raising=False)
    bundle = export("classify", "dense")
    x = np.zeros((1, 3, *bundle.config.image_size), np.float32)
    files: list[set[str]] = []
    for _ in range(2):
        with OnnxRuntimeEngine(bundle.model_path, provider=provider) as engine:
            engine.run({names.INPUT: x})
        (folder,) = bundle.path.with_name(f"{bundle.name}.cache").glob(f"{provider}-*")
        files.append({file.name for file in folder.iterdir()})
    assert len(files[0]) > 1 and files[0] == files[1]
    assert open_bundle(bundle.path).manifest == bundle.manifest


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mode", STATIC)
@pytest.mark.parametrize("task", TASKS)
def test_engine(
    export: Callable[..., Bundle], target: str, task: str, mode: str, precision: str
) -> None:
    bundle = export(task, mode, precision=precision, target=target, batch="1:1:2")
    report = api.verify(bundle.path)
    assert report.passed, report.verdict
    assert report.engine["runtime"] == target
    assert bundle.engine_path is not None
    print(read_sidecar(bundle.engine_path).settings["layers"])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mode", ["dynamic", "budget"])
@pytest.mark.parametrize("task", TASKS)
def test_engine_with_plugins(
    export: Callable[..., Bundle],
    target: str,
    plugins: Path,
    task: str,
    mode: str,
    precision: str,
) -> None:
    """The whole path: parsed plugins, size tensors, allocators, attention packed or padded."""
    options = {"precision": precision, "target": target, "plugins": True}
    bundle = export(task, mode, batch="1:1:2", **options)
    assert bundle.engine_path is not None
    told = read_sidecar(bundle.engine_path)
    assert [name for name, _ in told.plugins] == [plugins.name]
    print(told.settings["plugin_form"], told.settings["packed_blocks"])
    report = api.verify(bundle.path)
    assert report.passed, report.verdict


def test_plugins_keep_nothing_and_everything(
    export: Callable[..., Bundle], target: str, plugins: Path
) -> None:
    """Sizes of 0 and of all tokens, in turn, in one engine."""
    bundle = export("classify", "dynamic", target=target, plugins=True, batch="1:1:4")
    assert bundle.engine_path is not None
    size = bundle.config.image_size
    random = np.random.default_rng(0)
    batches = [
        scale * random.standard_normal((count, 3, *size), np.float32)
        for count, scale in ((1, 1), (4, 50), (2, 0), (4, 1), (1, 50))
    ]
    with (
        TensorRTEngine(bundle.engine_path) as engine,
        OnnxRuntimeEngine(bundle.model_path) as graph,
    ):
        for x in batches:
            found, expected = (one.run({names.INPUT: x}) for one in (engine, graph))
            same = found[names.KEEP_MASK] == expected[names.KEEP_MASK]
            assert same.mean() > 0.999
            if same.all():
                np.testing.assert_allclose(
                    found[names.LOGITS], expected[names.LOGITS], rtol=1e-3, atol=1e-3
                )


@pytest.mark.parametrize("cuda_graph", ["on", "off"])
def test_several_runs_in_flight(
    export: Callable[..., Bundle], target: str, cuda_graph: str
) -> None:
    bundle = export("classify", "budget", target=target, batch="1:1:4")
    assert bundle.engine_path is not None
    x = np.zeros((4, 3, *bundle.config.image_size), np.float32)
    with TensorRTEngine(bundle.engine_path, cuda_graph=cuda_graph) as engine:
        alone = engine.run({names.INPUT: x})
        flight = engine.fly([{names.INPUT: x}], None, 64, 3)
        again = engine.run({names.INPUT: x})
        kernels = engine.description["kernels"]
    assert flight.runs == 64 and 0 < flight.device_ms < 1e3
    for name, array in alone.items():
        np.testing.assert_array_equal(again[name], array)
    assert (kernels is None) == (target == "tensorrt")


def test_compiled_kernels_are_found_again(
    export: Callable[..., Bundle], target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if target != "tensorrt-rtx":
        pytest.skip("TensorRT compiles when it builds")
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path / "cache"))
    bundle = export("classify", "dense", target=target)
    assert bundle.engine_path is not None
    x = np.zeros((1, 3, *bundle.config.image_size), np.float32)
    for expected in (False, True):
        with TensorRTEngine(bundle.engine_path) as engine:
            engine.run({names.INPUT: x})
            assert engine.description["kernels"]["from_cache"] is expected


def test_the_largest_images_of_a_detector(export: Callable[..., Bundle], target: str) -> None:
    """More tokens kept than TensorRT ranks at once."""
    options = {"image_size": "1344x1344", "budget": "0.75"}
    folder = export("backbone", "masked").path.parent / "large"
    bundle = api.export(
        checkpoint_of("svit_adapter"), folder, task="backbone", tokens="budget",
        overrides=SETTINGS["svit_adapter"], target=target, batch="1", **options,
    )  # fmt: skip
    report = api.verify(bundle.path)
    assert report.passed, report.verdict
