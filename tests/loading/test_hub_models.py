"""A model of timm by its name: exported, recorded, verified, equal to timm's own forward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from svit_deploy import api
from svit_deploy.bundle import open_bundle
from svit_deploy.cli import main
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.images import synthetic_images

pytestmark = pytest.mark.slow

NAME, COMMIT = "deit_tiny_patch16_224", "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = f"timm/{NAME}.fb_in1k"


@pytest.fixture(scope="module")
def model() -> Any:
    """timm's, with random weights: what its own table tells is not changed."""
    torch.manual_seed(0)
    from timm import create_model

    return create_model(NAME, pretrained=False).eval()


@pytest.fixture
def cache(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with these weights in timm's repository, and no way to the hub."""
    place = tmp_path / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    (place / "snapshots" / COMMIT).mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    save_file(model.state_dict(), place / "snapshots" / COMMIT / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_timm_by_name(model: Any, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = cache / "out"
    pictures = synthetic_images(2, (224, 224))
    np.savez(cache / "two.npz", images=np.stack(pictures.arrays))
    line = ["--no-progress", "export", f"timm:{NAME}", "-o", str(output), "--tokens", "dense"]
    line += ["--calibration", str(cache / "two.npz")]
    assert main(line) == 0
    told = capsys.readouterr()
    assert f"note: weights of timm:{NAME}.fb_in1k, revision {COMMIT}\n" in told.err
    assert f"checkpoint  timm:{NAME}.fb_in1k, sha256 " in told.out
    assert f"svit-deploy verify {output} --against timm:{NAME}" in told.out
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["origin"] == {"id": f"timm:{NAME}.fb_in1k", "revision": COMMIT}
    assert manifest["checkpoint"]["name"] == "model.safetensors"
    assert f"timm:{NAME}" in manifest["command"]
    assert manifest["preprocess"]["crop_ratio"] == model.pretrained_cfg["crop_pct"] == 0.9
    assert "crop_ratio" not in manifest["assumed"]

    preprocess = open_bundle(output).config.preprocess
    pixels = pictures.inputs(preprocess, (224, 224))
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels)).numpy()
    with OnnxRuntimeEngine(output / "model.onnx", threads=1) as engine:
        found = engine.run({"images": pixels})["logits"]
    assert found == pytest.approx(expected, abs=1e-4)

    report = api.verify(output, against=f"timm:{NAME}", threads=1)
    assert report.passed, report.verdict
    by_file = api.verify(output, against=f"hf://{REPOSITORY}", threads=1)
    assert by_file.passed, by_file.verdict
    facts = api.inspect(f"timm:{NAME}").facts["model"]
    told_by = {fact["name"]: (fact["value"], fact["source"]) for fact in facts}
    assert told_by["crop_ratio"] == (0.9, "hub")
    assert told_by["num_heads"] == (3, "preset deit_tiny")
    assert api.inspect(output).facts["origin"] == manifest["origin"]


def test_a_method_on_timms_weights(cache: Path) -> None:
    name = f"hf://{REPOSITORY}/model.safetensors"
    bundle = api.export(name, cache / "tome", arch="tome_t")
    assert bundle.manifest["origin"] == {"id": name, "revision": COMMIT}
    # The user has named what the model is, and with it how pictures are cropped.
    assert bundle.config.preprocess.crop_ratio == 0.875
    assert np.isclose(bundle.config.preprocess.mean[0], 0.485)
