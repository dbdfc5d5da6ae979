"""Packages of bundles: what they hold, what they are checked with, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml

from svit_deploy import api
from svit_deploy.bundle import Bundle, open_bundle
from svit_deploy.cli import main
from svit_deploy.errors import CapabilityError, ExportError, InputError, UsageError
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.package.run import FORMATS
from tests.serve.needs import needs_kserve
from tests.told import SETTINGS, checkpoint_of

pytestmark = pytest.mark.slow


def triton_of(bundle: Bundle, output: Path, **options: Any) -> tuple[Any, Path]:
    """The configuration of a packaged bundle, as Triton's own messages read it, and its folder."""
    messages = pytest.importorskip(
        "tritonclient.grpc", reason="the extra `triton` is not installed"
    ).model_config_pb2
    from google.protobuf import text_format

    api.package(bundle.path, output, format="triton", name="model", **options)
    folder = output / "model"
    text = (folder / "config.pbtxt").read_text()
    return text_format.Parse(text, messages.ModelConfig()), folder


def tensors(config: Any) -> dict[str, tuple[int, list[int]]]:
    return {one.name: (one.data_type, list(one.dims)) for one in (*config.input, *config.output)}


def test_triton_gets_a_classifier_that_batches(digits_bundle: Bundle, tmp_path: Path) -> None:
    config, folder = triton_of(digits_bundle, tmp_path / "triton", max_delay=5, threads=2)
    assert (config.name, config.backend, config.max_batch_size) == ("model", "onnxruntime", 32)
    FP32, BOOL = 11, 1
    assert tensors(config) == {
        "images": (FP32, [3, 48, 48]),
        "logits": (FP32, [10]),
        "keep_mask": (BOOL, [4, 65]),
        "margin": (FP32, [4, 65]),
    }
    assert list(config.dynamic_batching.preferred_batch_size) == [16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 5000
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    told = json.loads(config.parameters["svit_preprocess"].string_value)
    assert told == digits_bundle.manifest["preprocess"]
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 32]
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == {
        "config.pbtxt",
        "1/model.onnx",
    }
    # What Triton would load and warm up with is the bundle's graph and a sample that it takes.
    sample = np.fromfile(folder / "warmup" / "images", np.float32).reshape(1, 3, 48, 48)
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
    logits = session.run(["logits"], {"images": sample})[0]
    part = digits_bundle.load_samples()[0]
    np.testing.assert_allclose(logits[0], part.result.outputs[0]["logits"], atol=1e-3)


@pytest.mark.slow
def test_triton_gets_a_detector_that_does_not_batch(detection_golden: Any, tmp_path: Path) -> None:
    bundle = api.export(
        detection_golden("svit_mask_rcnn").path,
        tmp_path / "detector",
        task="detect",
        tokens="dynamic",
        image_size="96x128:96x128:160x160",
        overrides=SETTINGS["svit_mask_rcnn"],
    )
    config, folder = triton_of(bundle, tmp_path / "triton", provider="cuda")
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU
    shapes = {name: dims for name, (_, dims) in tensors(config).items()}
    assert shapes["images"] == [-1, 3, -1, -1]
    assert (shapes["boxes"], shapes["masks"]) == ([-1, 4], [-1, 28, 28])
    (warmup,) = config.model_warmup
    assert {name: list(one.dims) for name, one in warmup.inputs.items()} == {
        "images": [1, 3, *bundle.load_samples()[0].images[0].size],
        "image_sizes": [1, 2],
        "scale_factors": [1, 4],
    }
    assert all((folder / "warmup" / name).stat().st_size for name in warmup.inputs)


def test_triton_gets_class_names(digits: Any, heldout: Any, tmp_path: Path) -> None:
    from svit_deploy.export.pipeline import export_model
    from svit_deploy.export.settings import ExportSettings

    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"digit {number}" for number in range(10)))
    settings = ExportSettings(class_names=names, calibration=heldout[:4])
    bundle = export_model(digits, tmp_path / "bundle", settings)
    config, folder = triton_of(bundle, tmp_path / "triton")
    assert config.output[0].label_filename == "labels.txt"
    assert (folder / "labels.txt").read_text().splitlines()[3] == "digit 3"


def test_without_tritonclient(
    digits_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(CapabilityError, match=r"needs tritonclient.*'svit-deploy\[triton\]'"):
        api.package(digits_bundle.path, tmp_path / "out", format="triton")
    assert list(tmp_path.iterdir()) == []


def test_a_container_serves_the_very_bundle_without_root(
    digits_bundle: Bundle, tmp_path: Path
) -> None:
    output = api.package(digits_bundle.path, tmp_path / "docker", format="docker", name="digits")
    copied = open_bundle(output / "bundle")
    assert copied.model_sha256 == digits_bundle.model_sha256
    lines = (output / "Dockerfile").read_text().splitlines()
    words = {line.split()[0] for line in lines if line and line[0].isupper()}
    assert words >= {"FROM", "COPY", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "STOPSIGNAL"}
    assert "USER 10001:10001" in lines
    text = "\n".join(lines).replace("\\\n", "")
    assert "svit-deploy[cpu,serve]==" in text and "torch" not in text
    command = json.loads(text.partition("ENTRYPOINT ")[2])
    assert command[:3] == ["svit-deploy", "serve", "digits=/bundle"]
    words = [word.replace("/bundle", str(output / "bundle")) for word in command[1:]]
    if find_spec("kserve") is not None:
        assert main([*words, "--dry-run"]) == 0


@needs_kserve
@pytest.mark.slow
def test_the_cluster_gets_a_service_that_kserve_understands(
    digits_bundle: Bundle, tmp_path: Path
) -> None:
    output = tmp_path / "kserve"
    options = {"image": "registry/digits:1", "storage": "pvc://models/digits"}
    api.package(digits_bundle.path, output, format="kserve", name="My_digits", **options)
    told = yaml.safe_load((output / "inferenceservice.yaml").read_text())
    container = told["spec"]["predictor"]["containers"][0]
    assert told["metadata"]["name"] == "my-digits"
    assert container["command"] == ["svit-deploy", "serve", "My_digits=/mnt/models"]
    assert container["env"] == [{"name": "STORAGE_URI", "value": "pvc://models/digits"}]
    assert container["securityContext"]["runAsNonRoot"] is True
    # Kubernetes' own classes know every field: what they make of it says the same.
    code = """
import json, sys, yaml
from kserve import V1beta1InferenceService, V1beta1PredictorSpec
from kubernetes.client import ApiClient
told = yaml.safe_load(open(sys.argv[1]))
predictor = told["spec"]["predictor"]
assert set(told) <= set(V1beta1InferenceService.attribute_map.values())
assert set(predictor) <= set(V1beta1PredictorSpec.attribute_map.values())
client, text = ApiClient(), json.dumps(predictor["containers"][0])
container = client.deserialize(text, "V1Container", "application/json")
found = client.sanitize_for_serialization(container)
print(json.dumps([predictor["containers"][0], found]))
"""
    path = output / "inferenceservice.yaml"
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    wanted, found = json.loads(run.stdout.splitlines()[-1])
    assert found == wanted


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"format": "zip"}, UsageError, "use triton, kserve, docker"),
        ({"format": "kserve"}, UsageError, "needs the container's image"),
        ({"format": "docker", "image": "x"}, UsageError, "--image has no meaning"),
        ({"format": "docker", "storage": "x"}, UsageError, "--storage has no meaning"),
        ({"format": "docker", "name": 'x", "rm'}, UsageError, "no name of a model"),
    ],
)
def test_refusals_leave_nothing_behind(
    digits_bundle: Bundle,
    tmp_path: Path,
    options: dict[str, str],
    error: type[Exception],
    why: str,
) -> None:
    with pytest.raises(error, match=why):
        api.package(digits_bundle.path, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_fp8_is_not_for_tritons_onnx_runtime(
    digits: Any, heldout: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svit_deploy.package.triton.require", lambda *given, **named: None)
    settings = ExportSettings(precision="fp8", calibration=heldout[:2])
    bundle = export_model(digits, tmp_path / "bundle", settings)
    with pytest.raises(
        InputError, match=r"Triton cannot tell its ONNX Runtime .*--target tensorrt"
    ):
        api.package(bundle.path, tmp_path / "out", format="triton")
    assert not (tmp_path / "out").exists()


def test_only_a_package_is_replaced_and_only_when_told(
    digits_bundle: Bundle, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    (output / "mine").mkdir(parents=True)
    with pytest.raises(ExportError, match="is no package"):
        api.package(digits_bundle.path, output, format="docker", force=True)
    (output / "mine").rmdir()
    api.package(digits_bundle.path, output, format="docker")
    with pytest.raises(ExportError, match="holds a package already"):
        api.package(digits_bundle.path, output, format="docker")
    api.package(digits_bundle.path, output, format="kserve", image="x", force=True)
    assert {path.name for path in output.iterdir()} == {"inferenceservice.yaml", "package.json"}


def test_a_dry_run_writes_nothing(digits_bundle: Bundle, tmp_path: Path) -> None:
    with api.DryRun() as plan:
        api.package(digits_bundle.path, tmp_path / "out", format="docker", plan=plan)
    assert ("package", "docker, model dynamic") in plan.lines
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def engine_bundle(fake_process: Any, tmp_path: Path) -> Callable[..., Bundle]:
    """A golden checkpoint with an engine of the fake library."""

    def export(**options: Any) -> Bundle:
        known = {"target": "tensorrt", "batch": "1:2:8", "budget": "1.0", **options}
        path = checkpoint_of("svit_cls")
        return api.export(path, tmp_path / "bundle", overrides=SETTINGS["svit_cls"], **known)

    return export


def test_triton_gets_an_engine(engine_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = engine_bundle()
    config, folder = triton_of(bundle, tmp_path / "triton")
    assert (config.backend, config.max_batch_size) == ("tensorrt", 8)
    assert bundle.engine_path is not None
    assert (folder / "1" / "model.plan").read_bytes() == bundle.engine_path.read_bytes()
    output = api.package(bundle.path, tmp_path / "docker", format="docker")
    text = (output / "Dockerfile").read_text()
    assert "[gpu,serve,tensorrt]" in text and '"tensorrt==10.16' in text


def test_an_engine_of_one_batch_is_not_for_triton(
    engine_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    pytest.importorskip("tritonclient.grpc", reason="the extra `triton` is not installed")
    bundle = engine_bundle(batch="4:4:4")
    with pytest.raises(InputError, match="batches of 4 to 4"):
        api.package(bundle.path, tmp_path / "triton", format="triton")
    assert triton_of(bundle, tmp_path / "graph", provider="cuda")[0].backend == "onnxruntime"


def test_every_format_is_told_in_the_help(capsys: pytest.CaptureFixture) -> None:
    assert main(["package", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in FORMATS)
