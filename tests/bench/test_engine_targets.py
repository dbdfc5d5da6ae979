"""Engines as targets of `bench`: which runs, what is refused, what the report says of them."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from svit_deploy import api
from svit_deploy.bench.inputs import Inputs
from svit_deploy.bench.printing import render
from svit_deploy.bench.settings import BenchSettings
from svit_deploy.bench.targets import check_targets, find_candidate
from svit_deploy.bundle.bundle import open_bundle
from svit_deploy.bundle.manifest import write_manifest
from svit_deploy.cli import main
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.engines.tensorrt.runner import TensorRTEngine
from svit_deploy.errors import CapabilityError, InputError, UsageError
from svit_deploy.images.sets import load_images
from svit_deploy.model.profiles import Profile
from tests.engines.fake_onnxruntime import install_providers
from tests.engines.tensorrt.fake.cuda import Device
from tests.engines.tensorrt.fake.engines import install, remove_sidecar, write_engine

pytestmark = pytest.mark.slow

pytest.importorskip("torch")

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
PROFILES = (
    Profile((1, 3, 48, 48), (1, 3, 48, 48), (4, 3, 48, 48)),
    Profile((6, 3, 48, 48), (8, 3, 48, 48), (8, 3, 48, 48)),
)
QUICK: dict[str, Any] = {"warmup_s": 0, "duration_s": 0, "min_samples": 1, "threads": 1}
NAME = "model.fp16-trt10.16-sm90.engine"
MHA = {"Name": "_gemm_mha_v2_myl0_3", "LayerType": "kgen", "TacticName": "_gemm_mha_v2_0xbc"}


@pytest.fixture
def device(monkeypatch) -> Device:
    device = Device()
    install(monkeypatch, device)
    return device


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The digits model in a token mode, without an engine."""
    folder = tmp_path_factory.mktemp("exported")

    def export(mode: str) -> Path:
        if not (folder / mode).exists():
            api.export(
                DIGITS / "svit_digits.pth",
                folder / mode,
                arch=str(DIGITS / "arch.yaml"),
                tokens=mode,
                budget="1.0" if mode == "budget" else None,
            )
        return folder / mode

    return export


@pytest.fixture
def bundle(exported, tmp_path) -> Callable[..., Path]:
    """The same with an engine."""

    def add_engine(mode: str = "budget", **plan: Any) -> Path:
        path = tmp_path / f"{mode}-trt"
        shutil.copytree(exported(mode), path)
        opened = open_bundle(path)
        told = {"tokens": mode, **plan.pop("sidecar", {})}
        write_engine(path / NAME, opened.load_model(), PROFILES, sidecar=told, **plan)
        manifest = {
            k: v for k, v in opened.manifest.items() if k not in ("schema_version", "files")
        }
        (path / "manifest.json").unlink()
        write_manifest(path, manifest | {"engine": NAME})
        return path

    return add_engine


@pytest.fixture(scope="module")
def pictures() -> Inputs:
    return Inputs(load_images(DIGITS / "heldout.npz", limit=8))


def prepare(path: Path, inputs: Inputs | None = None, **settings: Any):
    return find_candidate(path, BenchSettings(**QUICK | settings)).prepare(inputs or Inputs())


def test_a_bundle_runs_on_its_engine_unless_a_provider_is_asked_for(device, bundle, pictures):
    path = bundle()
    (target,) = prepare(path, pictures)
    assert (target.label, target.runtime.name) == ("budget-trt", "tensorrt")
    assert target.keep_output == "keep_mask"
    entry = open_bundle(path).manifest["files"][NAME]
    assert target.provenance.model_sha256 == entry["sha256"]
    with target.engine_factory() as engine:
        assert isinstance(engine, TensorRTEngine)
    (on_cpu,) = prepare(path, pictures, provider="cpu")
    assert on_cpu.inputs is target.inputs
    assert on_cpu.runtime.name == "onnxruntime"
    with on_cpu.engine_factory() as engine:
        assert isinstance(engine, OnnxRuntimeEngine)


def test_engine_and_onnx_runtime_in_one_comparison(device, bundle):
    path = bundle()
    report = api.bench([path / "model.onnx", path], images=DIGITS / "heldout.npz", max_images=8,
                       settings=BenchSettings(**QUICK))  # fmt: skip
    runtimes = [target.engine["runtime"] for target in report.targets]
    assert runtimes == ["onnxruntime", "tensorrt"]
    on_cpu, engine = report.results
    assert on_cpu.gpu is None
    assert engine.gpu.gpu.p50_ms == 2
    assert engine.gpu.graph
    assert engine.gpu.profile == 0
    assert engine.speedup is not None
    assert engine.kept.mean == on_cpu.kept.mean
    json.dumps(report.to_dict(), allow_nan=False)
    assert not any(device.open.values())


def test_both_graph_modes_side_by_side(device, bundle):
    settings = BenchSettings(**QUICK | {"cuda_graph": "both", "batches": (1, 8)})
    report = api.bench([bundle()], settings=settings)
    assert [(result.label, result.batch, result.gpu.graph) for result in report.results] == [
        ("budget-trt, graph on", 1, True),
        ("budget-trt, graph off", 1, False),
        ("budget-trt, graph on", 8, True),
        ("budget-trt, graph off", 8, False),
    ]
    assert [result.gpu.profile for result in report.results] == [0, 0, 1, 1]
    file = io.StringIO()
    render(report, Console(file=file, width=80))
    assert "graph on" in file.getvalue()
    assert max(map(len, file.getvalue().splitlines())) <= 80


def test_a_dynamic_engine_says_what_it_cannot(device, bundle, pictures):
    path = bundle("dynamic", sidecar={"precision": "fp32"})
    (target,) = prepare(path, pictures)
    assert target.content_dependent
    assert not target.variants
    with target.engine_factory() as engine:
        graph, edited, fusion = target.notes(engine)
    assert graph.startswith("no CUDA graph: in token mode dynamic the host must wait")
    assert "neither its worst case nor a sweep is timed" in edited
    assert fusion.startswith("the engine does not tell its layers")
    (plain,) = prepare(path, pictures, worst_case=False, cuda_graph="off")
    with plain.engine_factory() as engine:
        assert plain.notes(engine) == [fusion]
    with pytest.raises(UsageError, match="noise would measure something else"):
        prepare(path, Inputs(noise=True))
    sweep = BenchSettings(sweep_tokens=Path("sweep.png"))
    with pytest.raises(UsageError, match=r"engine cannot be edited.*add --engine onnxruntime"):
        check_targets([target], sweep)
    check_targets([target, *prepare(path, pictures, provider="cpu")], sweep)
    (on,) = prepare(path, pictures, cuda_graph="on")
    with pytest.raises(CapabilityError, match="no CUDA graph can be captured: in token mode"):
        on.engine_factory()


@pytest.mark.parametrize(
    ("fused", "precision", "sentence"),
    [
        (6, "fp32", None),
        (0, "fp32", "0 of 6 attentions are fused; likely reason: fused kernels take fp16 or bf16"),
    ],
)
def test_lost_fusion_is_told(device, bundle, fused, precision, sentence):
    layers = [MHA] * fused + [{"Name": "gemm", "LayerType": "gemm"}]
    (target,) = prepare(bundle(layers=layers))
    with target.engine_factory() as engine:
        assert engine.description["layers"]["fused_attention"] == fused
        notes = target.notes(engine)
    assert notes == [] if sentence is None else notes[0].startswith(sentence)


def test_batches_must_be_within_a_profile(device, bundle):
    path = bundle()
    prepare(path, batches=(1, 4, 8))
    sentence = r"was not built for batch 5, only for 1x3x48x48 to 4x3x48x48, 6x3x48x48 to 8x3x48x48"
    with pytest.raises(UsageError, match=sentence):
        prepare(path, batches=(1, 5))


def test_an_engine_by_itself(device, bundle, tmp_path, pictures, caplog):
    inside = bundle() / NAME
    (target,) = prepare(inside, pictures)  # its bundle tells the rest
    (of_bundle,) = prepare(inside.parent, pictures)
    assert target.inputs is of_bundle.inputs
    assert target.label == inside.stem
    alone = tmp_path / "alone"
    alone.mkdir()
    for file in (inside, inside.with_suffix(".json")):
        shutil.copy(file, alone)
    path = alone / NAME
    with pytest.raises(UsageError, match=r"brings no sample inputs; add --images IMAGES, or --ran"):
        prepare(path)
    with caplog.at_level("INFO", "svit_deploy"):
        (target,) = prepare(path, pictures)
    assert "does not tell its preprocessing, ImageNet's is used" in caplog.text
    assert target.inputs.shape == (8, 3, 48, 48)
    assert target.task_outputs == ("logits",)
    with target.engine_factory() as engine:
        found = engine.run({target.input_name: target.inputs[:1]}, ["logits"])["logits"]
        assert target.notes(engine) == []
    assert np.isfinite(found).all()
    (alone / "manifest.json").write_text("{}")
    with caplog.at_level("INFO", "svit_deploy"):
        prepare(path, pictures)
    assert f"{NAME} is benched without its bundle" in caplog.text


def test_a_foreign_engine_tells_its_own_shapes(device, bundle, tmp_path, pictures):
    path = tmp_path / "foreign.engine"
    shutil.copy(bundle() / NAME, path)
    with pytest.raises(InputError, match="add --allow-foreign-engine"):
        prepare(path, pictures)
    (target,) = prepare(path, pictures, allow_foreign=True, batches=(8,))
    assert target.input_name == "images"
    with target.engine_factory() as engine:
        engine.run({"images": target.inputs})
    with pytest.raises(UsageError, match="was not built for batch 9"):
        prepare(path, pictures, allow_foreign=True, batches=(9,))
    path.write_bytes(b"\x05\x00\x00\x00[[1]]" + path.read_bytes())
    with pytest.raises(InputError, match="could not be loaded"):
        prepare(path, pictures, allow_foreign=True)
    path.write_bytes(b'\x07\x00\x00\x00{"a":1}' + path.read_bytes())
    with pytest.raises(InputError, match="7 bytes of JSON in front of the engine"):
        prepare(path, pictures)


def test_a_bundle_whose_engine_lost_its_sidecar(device, bundle):
    path = bundle()
    remove_sidecar(path / NAME)
    with pytest.raises(InputError, match="is missing from the bundle"):
        prepare(path)


def test_options_that_mean_nothing_are_refused(device, bundle, exported, pictures):
    targets = prepare(exported("dense"), pictures)
    with pytest.raises(UsageError, match="--cuda-graph both has no meaning for onnx"):
        check_targets(targets, BenchSettings(cuda_graph="both"))
    with pytest.raises(UsageError, match="'yes' is unknown; use auto, on, off, both"):
        BenchSettings(cuda_graph="yes")


def test_onnx_runtime_on_cuda_is_measured_as_engines_are(device, exported, monkeypatch):
    """GPU times and their speed-up, graphs side by side, several runs in flight, the clocks."""
    told = install_providers(monkeypatch, device)
    paths = [exported("dense"), exported("budget")]
    report = api.bench(
        paths,
        images=DIGITS / "heldout.npz",
        max_images=8,
        settings=BenchSettings(**QUICK, provider="cuda", cuda_graph="both", device="0"),
    )
    labels = [f"{path.name}, graph {graph}" for path in paths for graph in ("on", "off")]
    assert [result.label for result in report.results] == labels
    assert [result.gpu.graph for result in report.results] == [True, False] * 2
    for result in report.results[1:]:
        assert result.gpu.speedup.ratio == pytest.approx(1)
    assert all(result.gpu.profile is None for result in report.results)
    assert all(result.in_flight.runs_in_flight == 2 for result in report.results)
    screen = io.StringIO()
    render(report, Console(file=screen, width=120))
    assert "speed-up of GPU time over dense, graph on" in screen.getvalue()
    assert "1x3x48x48" in screen.getvalue()
    # Of each path: does the provider start, and a session for each run in flight.
    assert len(told.providers) == 2 * (1 + 2 * 2)
    dynamic = api.bench(
        [exported("dynamic")],
        images=DIGITS / "heldout.npz",
        max_images=8,
        settings=BenchSettings(**QUICK, provider="cuda"),
    )
    (target,), (result,) = dynamic.targets, dynamic.results
    assert any("no CUDA graph: in token mode dynamic" in note for note in target.notes)
    assert result.gpu.graph is False and result.worst_case is not None
    assert not any(device.open.values())


def test_a_missing_runtime_names_the_command_that_installs_it(device, bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(CapabilityError, match=r"run: pip install 'svit-deploy\[tensorrt\]'"):
        api.bench([bundle()], settings=BenchSettings(**QUICK))


def test_the_command_line(device, bundle, tmp_path, capsys):
    report = tmp_path / "report.json"
    options = ["--cuda-graph", "both", "--warmup", "0s", "--duration", "0s", "--min-samples", "12"]
    assert main(["--no-progress", "bench", str(bundle()), *options, "--json", str(report)]) == 0
    printed = capsys.readouterr().out
    assert "on the GPU; transfers and enqueueing are p50" in printed
    content = json.loads(report.read_text())
    assert [result["gpu"]["graph"] for result in content["results"]] == [True, False]
    assert content["settings"]["cuda_graph"] == "both"
    assert content["targets"][0]["engine"]["runtime"] == "tensorrt"
    assert main(["bench", str(bundle("dynamic")), "--cuda-graph", "on"]) == 4
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["bench", str(bundle("dense")), "--device", "3"]) == 2
    assert "there is no GPU 3" in capsys.readouterr().err
