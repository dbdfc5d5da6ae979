"""What TensorRT-RTX compiles at run time: before the first run of a shape, once per machine."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from svit_deploy.engines.kept import RECORD
from svit_deploy.engines.tensorrt.runner import TensorRTEngine
from svit_deploy.model.profiles import Profile
from tests.engines.tensorrt.fake.cuda import Device
from tests.engines.tensorrt.fake.engines import RTX_VERSION, install, remove_sidecar, write_engine
from tests.engines.tensorrt.test_graphs import relu

PROFILE = Profile((1, 3, 4, 4), (2, 3, 4, 4), (8, 3, 4, 4))


@pytest.fixture
def device(monkeypatch, tmp_path) -> Device:
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path / "cache"))
    device = Device()
    install(monkeypatch, device)
    return device


def write(path: Path, **fields) -> Path:
    known = {"library": "tensorrt_rtx", "version": RTX_VERSION, "sidecar": {"gpu": None}}
    return write_engine(path, relu("logits"), (PROFILE,), **known | fields)


@pytest.fixture
def engine_file(tmp_path) -> Path:
    return write(tmp_path / "m.engine")


def run(path: Path, device: Device, *counts: int, **options) -> tuple[list[str], bool]:
    """Runs batches in a new engine: what was compiled, and whether some was found compiled."""
    device.calls.clear()
    with TensorRTEngine(path, **options) as engine:
        for count in counts:
            x = np.random.default_rng(count).standard_normal((count, 3, 4, 4), np.float32)
            np.testing.assert_array_equal(engine.run({"images": x})["logits"], np.maximum(x, 0))
        about = engine.description["kernels"]
    assert about["compiled"] == "eagerly"
    assert "fallback kernel" not in device.calls
    assert not any(device.open.values())
    return [call for call in device.calls if call.startswith("compile")], about["from_cache"]


def test_each_shape_is_compiled_before_its_first_run_and_once(device, engine_file, tmp_path):
    shapes = ["compile 1x3x4x4", "compile 2x3x4x4"]
    assert run(engine_file, device, 1, 1, 2, 1, 1) == (shapes, False)
    assert run(engine_file, device, 2, 1, 2) == ([], True)
    assert run(engine_file, device, 4, 1) == (["compile 4x3x4x4"], True)
    assert run(engine_file, device, 4, 2, 1) == ([], True)
    assert sorted(file.name for file in kept(tmp_path).parent.iterdir()) == [
        "kernels.cache",
        "record.json",
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda device, tmp: setattr(device, "name", "NVIDIA Fake 8000"),
        lambda device, tmp: setattr(device, "capability", (12, 0)),
        lambda device, tmp: setattr(device, "driver", 13020),
        lambda device, tmp: write(tmp / "m.engine", ms=3.0),
    ],
    ids=["gpu", "capability", "driver", "engine"],
)
def test_kernels_of_something_else_are_dropped(device, engine_file, tmp_path, change, caplog):
    assert run(engine_file, device, 1) == (["compile 1x3x4x4"], False)
    assert not caplog.records
    before = device.name
    change(device, tmp_path)
    assert run(engine_file, device, 1) == (["compile 1x3x4x4"], False)
    assert ("is dropped, and made anew: it was made for" in caplog.text) == (device.name == before)
    assert run(engine_file, device, 1) == ([], True)


def kept(tmp_path: Path) -> Path:
    """The one file of compiled kernels."""
    (file,) = (tmp_path / "cache" / "engines").rglob("kernels.cache")
    return file


def damage(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b" 2x3x4x4")


def claim(file: Path) -> None:
    """As if the record were of another engine's file."""
    record = json.loads(file.with_name(RECORD).read_text())
    record["made_for"]["engine"] = "0" * 64
    file.with_name(RECORD).write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage, "its files are not those that were written"),
        (claim, "it was made for engine 0000"),
        (lambda file: file.with_name("more").touch(), "its files are not those that were written"),
        (lambda file: file.with_name(RECORD).unlink(), "it has no record"),
        (lambda file: file.with_name(RECORD).write_text("{"), "record.json is damaged"),
    ],
)
def test_what_is_not_as_it_was_written_is_not_loaded(
    device, engine_file, tmp_path, monkeypatch, caplog, harm, words
):
    """It is native code: the library does not even see it. A new one takes its place."""
    run(engine_file, device, 1)
    harm(kept(tmp_path))

    def deserialized(self, blob):
        raise AssertionError

    with monkeypatch.context() as patch:
        fake = "tests.engines.tensorrt.fake.runtime.RuntimeCache.deserialize"
        patch.setattr(fake, deserialized)
        assert run(engine_file, device, 1) == (["compile 1x3x4x4"], False)
    assert words in caplog.text
    assert run(engine_file, device, 1) == ([], True)


def test_the_library_refuses_them(device, engine_file, monkeypatch, caplog):
    run(engine_file, device, 1)
    fake = "tests.engines.tensorrt.fake.runtime.RuntimeCache.deserialize"
    monkeypatch.setattr(fake, lambda self, blob: False)
    assert run(engine_file, device, 1) == (["compile 1x3x4x4"], False)
    assert f"is refused by TensorRT-RTX {RTX_VERSION}" in caplog.text


def test_no_place_to_keep_them(device, engine_file, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path / "file"))
    caplog.set_level(logging.WARNING)
    assert run(engine_file, device, 1) == (["compile 1x3x4x4"], False)
    assert "what is built of m.engine is not kept" in caplog.text


def test_a_foreign_engine_is_known_by_its_hash(device, engine_file):
    remove_sidecar(engine_file)
    assert run(engine_file, device, 1, allow_foreign=True) == (["compile 1x3x4x4"], False)
    assert run(engine_file, device, 1, allow_foreign=True) == ([], True)


def test_the_real_library_has_what_is_asked_of_it():
    """As far as it goes without a GPU."""
    library = pytest.importorskip("tensorrt_rtx")
    assert library.DynamicShapesKernelSpecializationStrategy.EAGER
    assert library.ExecutionContextAllocationStrategy.USER_MANAGED
    assert library.ICudaEngine.create_runtime_config
    config, cache = library.IRuntimeConfig, library.IRuntimeCache
    assert isinstance(config.dynamic_shapes_kernel_specialization_strategy, property)
    for method in ("create_runtime_cache", "set_runtime_cache"):
        assert callable(getattr(config, method))
    assert callable(config.set_execution_context_allocation_strategy)
    assert callable(cache.serialize) and callable(cache.deserialize)
