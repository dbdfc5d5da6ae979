"""The command line's verbs as functions."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from svit_deploy import api
from svit_deploy.bench.settings import BenchSettings
from svit_deploy.bundle import MANIFEST, open_bundle
from svit_deploy.errors import CapabilityError, ExportError, InputError, UsageError
from svit_deploy.model.config import TokenMode
from svit_deploy.progress import Progress

pytest.importorskip("torch")

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
CHECKPOINT, ARCH, HELDOUT = (
    str(DIGITS / n) for n in ("svit_digits.pth", "arch.yaml", "heldout.npz")
)
QUICK = BenchSettings(warmup_s=0, duration_s=0, min_samples=1, threads=1)


class Steps(Progress):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []

    def update(self, description: str, fraction: float) -> None:
        self.told.append((description, fraction))

    @property
    def descriptions(self) -> list[str]:
        return list(dict.fromkeys(description for description, _ in self.told))

    def check(self) -> None:
        fractions = [fraction for _, fraction in self.told]
        assert fractions == sorted(fractions)
        assert all(0 <= fraction <= 1 for fraction in fractions)


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("api") / "dynamic"
    return api.export(CHECKPOINT, output, arch=ARCH, calibration=HELDOUT, max_images=16).path


def test_export_returns_the_bundle(tmp_path):
    bundle = api.export(CHECKPOINT, str(tmp_path / "out"), arch=ARCH, tokens="masked", batch="2")
    assert bundle == open_bundle(tmp_path / "out")
    assert bundle.mode is TokenMode.MASKED
    assert bundle.manifest["batch"] == {"min": 2, "opt": 2, "max": 2}
    assert bundle.manifest["command"] == []


def test_export_tells_its_progress_and_its_notes(tmp_path, caplog):
    steps = Steps()
    with caplog.at_level(logging.INFO, "svit_deploy"):
        api.export(
            CHECKPOINT,
            tmp_path / "out",
            arch=ARCH,
            calibrate_gates=HELDOUT,
            max_images=8,
            progress=steps,
        )
    steps.check()
    assert steps.descriptions == [
        "reading svit_digits.pth",
        "reading heldout.npz",
        "calibrating the gates",
        "running the reference",
        "writing and checking the graph",
    ]
    assert "model_ema ignored, weights taken from 'model'" in caplog.messages
    assert "gate thresholds calibrated on 8 images" in caplog.messages


def test_the_same_export_gives_the_same_model(dynamic, tmp_path):
    again = api.export(CHECKPOINT, tmp_path / "out", arch=ARCH, calibration=HELDOUT, max_images=16)
    assert again.model_sha256 == open_bundle(dynamic).model_sha256


@pytest.mark.slow
def test_verify(dynamic):
    steps = Steps()
    report = api.verify(str(dynamic), threads=1, progress=steps)
    assert report.passed, report.verdict
    assert report.images == 16
    steps.check()
    report = api.verify(dynamic, against=CHECKPOINT, images=HELDOUT, max_images=5, arch=ARCH)
    assert report.passed, report.verdict
    assert report.images == 5
    assert report.results["top1_accuracy"] == report.results["reference_top1_accuracy"] == 1


@pytest.mark.slow
def test_verify_trusts_the_manifest_for_what_weights_cannot_tell(dynamic, tmp_path):
    assert api.verify(dynamic, against=CHECKPOINT).passed
    wrong = api.verify(dynamic, against=CHECKPOINT, overrides={"num_heads": "2"})
    assert not wrong.passed
    assert "num_heads" in wrong.verdict


@pytest.mark.slow
def test_verify_of_a_grid_that_is_not_square(tmp_path):
    arch = tmp_path / "arch.yaml"
    arch.write_text(
        "family: svit\nnum_heads: 2\nembed_dim: 16\ndepth: 2\npatch_size: 8\n"
        "image_size: 24x40\ngate_blocks: [1]\ngate_class_token: [true]\n"
    )
    weights = tmp_path / "random.safetensors"
    api.init(str(arch), weights, keep_ratio="0.5")
    for size in (None, "40x40"):
        bundle = api.export(weights, tmp_path / "out", arch=str(arch), image_size=size, force=True)
        assert bundle.config.native_grid == (3, 5)
        assert api.verify(bundle.path, against=weights).passed


@pytest.mark.slow
def test_verify_notes_are_for_other_checkpoints(dynamic, tmp_path, caplog):
    other = tmp_path / "other.pth"
    other.write_bytes(Path(CHECKPOINT).read_bytes())
    with caplog.at_level(logging.INFO, "svit_deploy"):
        api.verify(dynamic, against=other)
    assert not caplog.messages


@pytest.mark.slow
def test_bench(dynamic):
    steps = Steps()
    report = api.bench(
        [dynamic, str(dynamic)], images=HELDOUT, max_images=8, settings=QUICK, progress=steps
    )
    steps.check()
    assert [target.label for target in report.targets] == ["dynamic#1", "dynamic#2"]
    assert [target.images for target in report.targets] == [8, 8]
    plain = report.to_dict()
    assert plain["command"] == []
    assert [entry["label"] for entry in plain["inputs"]] == ["dynamic#1", "dynamic#2"]
    assert plain["tool"]["name"] == "svit-deploy"
    json.dumps(plain, allow_nan=False)


@pytest.mark.slow
def test_bench_makes_enough_noise_for_its_batches(tmp_path):
    dense = api.export(CHECKPOINT, tmp_path / "dense", arch=ARCH, tokens="dense", batch="1:1:40")
    settings = BenchSettings(batches=(40,), warmup_s=0, duration_s=0, min_samples=1, threads=1)
    report = api.bench([dense.path], noise=True, settings=settings)
    assert report.targets[0].images == 40
    assert report.to_dict()["inputs"][0]["images_sha256"] is None


def test_inspect_and_init(dynamic, tmp_path):
    assert api.inspect(str(dynamic)).kind == "bundle"
    made = api.init("deit_tiny", str(tmp_path / "x.safetensors"), seed=3)
    assert (made.arch, made.keep_ratios) == ("deit_tiny", ())
    assert api.inspect(made.path).facts["preset"] == "deit_tiny"


def test_visualize_draws_what_the_model_keeps(dynamic, tmp_path):
    steps = Steps()
    files = api.visualize(dynamic, tmp_path / "maps", images=HELDOUT, max_images=16, progress=steps)
    assert all(file.is_file() for file in files)
    steps.check()
    usage = json.loads((tmp_path / "maps" / "token_usage.json").read_text())
    with np.load(dynamic / "reference.npz") as recorded:  # of the same 16 images
        kept = recorded["keep_mask"].sum(axis=2).tolist()
    assert [image["kept_tokens"] for image in usage["images"]] == kept


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda out: api.export("absent.pth", out), InputError),
        (lambda out: api.export(CHECKPOINT, out, arch=ARCH, tokens="some"), UsageError),
        (lambda out: api.export(CHECKPOINT, out, arch=ARCH, image_size="50"), UsageError),
        (lambda out: api.export(CHECKPOINT, HELDOUT, arch=ARCH), ExportError),
        (lambda out: api.verify(out), InputError),
        (lambda out: api.verify(CHECKPOINT), InputError),
        (lambda out: api.bench([out]), InputError),
        (lambda out: api.bench([]), UsageError),
        (lambda out: api.inspect(out), InputError),
        (lambda out: api.visualize(out, out, images=HELDOUT), InputError),
        (lambda out: api.init("nonsense", out), UsageError),
    ],
)
def test_errors_have_types(tmp_path, call, error):
    with pytest.raises(error) as caught:
        call(tmp_path / "out")
    assert caught.value.fix
    assert not list(tmp_path.iterdir())


def test_provider_that_is_missing(dynamic):
    for call in (
        api.verify,
        lambda target, provider: api.bench([target], settings=BenchSettings(provider=provider)),
    ):
        with pytest.raises(CapabilityError):
            call(dynamic, provider="openvino")


@pytest.mark.slow
def test_manifest_may_name_the_bundle(dynamic):
    assert api.verify(dynamic / MANIFEST).passed
    assert api.bench([dynamic / MANIFEST], settings=QUICK).targets[0].label == "dynamic"
