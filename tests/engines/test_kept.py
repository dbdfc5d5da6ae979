"""What runtimes build of a model: where it is kept, and what is dropped."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import onnxruntime
import pytest

from svit_deploy.bundle.bundle import open_bundle
from svit_deploy.engines.device.cuda import Cuda
from svit_deploy.engines.kept import RECORD, Kept
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.engines.providers import TENSORRT_PROVIDER
from svit_deploy.names import MANIFEST
from tests.engines.tensorrt.fake.cuda import Device, make_cuda

GPU = "kind-nvidia-fake-9000"
MADE_FOR = {"model": "1" * 64, "onnxruntime-gpu": "1.31.1"}


@pytest.fixture
def device(monkeypatch, tmp_path) -> Device:
    device = Device()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", make_cuda(device))
    monkeypatch.delenv("SVIT_DEPLOY_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return device


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "place" / "out"
    folder.mkdir(parents=True)
    (folder / MANIFEST).touch()
    return folder / "model.onnx"


def test_beside_the_bundle_or_the_file(device, model, monkeypatch, tmp_path):
    assert Kept(model, "kind", MADE_FOR, Cuda()).path == tmp_path / "place" / "out.cache" / GPU
    (model.parent / MANIFEST).unlink()
    assert Kept(model, "kind", MADE_FOR, Cuda()).path == model.parent / "model.onnx.cache" / GPU
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path / "asked"))
    assert tmp_path / "asked" / "engines" in Kept(model, "kind", MADE_FOR, Cuda()).path.parents


def test_with_the_users_things_where_the_place_is_closed(device, model, monkeypatch, tmp_path):
    closed = "svit_deploy.engines.kept.os.access"
    monkeypatch.setattr(closed, lambda path, mode: path != tmp_path / "place")
    folder = Kept(model, "kind", MADE_FOR, Cuda()).path
    assert folder.parent.parent == tmp_path / "home" / "svit-deploy" / "engines"
    assert folder.parent.name.endswith("-out.cache") and folder.name == GPU
    assert not (tmp_path / "place" / "out.cache").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda kept, device: None, None),
        (lambda kept, device: (kept / "a.engine").write_bytes(b"other"), "not those that were wri"),
        (lambda kept, device: (kept / "b.engine").touch(), "not those that were written"),
        (lambda kept, device: (kept / "a.engine").unlink(), "not those that were written"),
        (lambda kept, device: (kept / RECORD).unlink(), "it has no record"),
        (lambda kept, device: setattr(device, "driver", 13020), "driver 13000, here is 13020"),
    ],
)
def test_what_does_not_fit_is_dropped_with_a_note(device, model, caplog, change, words):
    kept = Kept(model, "kind", MADE_FOR, Cuda())
    (kept.path / "a.engine").write_bytes(b"built")
    kept.keep()
    change(kept.path, device)
    again = Kept(model, "kind", MADE_FOR, Cuda()).path
    assert again == kept.path
    if words is None:
        assert (again / "a.engine").read_bytes() == b"built" and not caplog.records
    else:
        assert not any(again.iterdir())
        assert "is dropped, and made anew: " in caplog.text and words in caplog.text


def test_what_was_made_of_another_model_or_by_another_version(device, model, caplog):
    for number, made_for in enumerate((MADE_FOR, {**MADE_FOR, "model": "2" * 64}, MADE_FOR)):
        kept = Kept(model, "kind", made_for, Cuda())
        assert not any(kept.path.iterdir()) and len(caplog.records) == number
        (kept.path / "a.engine").touch()
        kept.keep()
    assert "it was made for model 2222" in caplog.messages[-1]


def test_no_place_at_all(device, model, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path / "file"))
    kept = Kept(model, "kind", MADE_FOR, Cuda())
    kept.keep()
    assert kept.path is None and "model.onnx is not kept" in caplog.text


def test_a_bundle_with_what_a_provider_built_beside_it_is_whole(
    device, digits_bundle, monkeypatch, tmp_path, caplog
):
    """The provider writes when it starts, and finds it again."""
    bundle = open_bundle(shutil.copytree(digits_bundle.path, tmp_path / "place" / "out"))
    found: list[bool] = []

    def session(model, options, providers, **rest):
        file = Path(providers[0][1]["trt_engine_cache_path"]) / "graph.engine"
        found.append(file.exists())
        file.write_bytes(b"native code")
        real = open_session(model, options, providers=["CPUExecutionProvider"])
        monkeypatch.setattr(real, "get_providers", lambda: [TENSORRT_PROVIDER])
        return real

    open_session = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT_PROVIDER])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    for _ in range(2):
        with OnnxRuntimeEngine(bundle.model_path, provider="tensorrt", threads=1):
            pass
    assert found == [False, True] and not caplog.records
    assert {path.name for path in (tmp_path / "place").iterdir()} == {"out", "out.cache"}
    assert open_bundle(bundle.path).manifest == bundle.manifest
    OnnxRuntimeEngine(bundle.model_path, provider="tensorrt", threads=1)  # ends without a word
    (tmp_path / "place" / "out.cache" / "tensorrt-nvidia-fake-9000" / "more").touch()
    with OnnxRuntimeEngine(bundle.model_path, provider="tensorrt", threads=1):
        assert found[2:] == [True, False] and "is dropped" in caplog.text
