"""Golden checkpoints, the toy model, and bundles of them, each made once per session."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

# Before PyTorch is imported: its threads spin, and on a small machine they would fight with ONNX
# Runtime's over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

from svit_deploy.bundle import Bundle
from svit_deploy.cli import main
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.engines.onnxruntime_session import Sessions
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.images import ImageSet, load_images
from svit_deploy.images.prepared import Prepared
from svit_deploy.loading.load import load_model
from svit_deploy.model.config import TokenMode
from svit_deploy.model.model import Model, without_gates
from tests.result import Result
from tests.told import SETTINGS, checkpoint_of, golden_file

TESTS = Path(__file__).parent
DIGITS = TESTS.parent / "examples" / "digits"


def pytest_collection_finish() -> None:
    """Spares the garbage collector what is imported and collected by now, and stays."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def skip_without(package: str) -> None:
    """Skips where a package is missing; it is not imported, for some tell servers when they are."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}", allow_module_level=True)


@dataclass(frozen=True)
class Golden:
    """A checkpoint and what the official code computes from it.

    Attributes:
        inputs: `[B, 3, H, W]`.
        keep_mask, margin: `[B, G, S]` as the graphs have them, margin +inf for a class token that
            is always kept; empty without gates.
    """

    name: str
    model: Model
    meta: dict[str, Any]
    inputs: np.ndarray
    logits: np.ndarray
    keep_mask: np.ndarray
    margin: np.ndarray

    @property
    def images(self) -> ImageSet:
        return as_images(self.inputs)

    @property
    def prepared(self) -> list[Prepared]:
        return [Prepared.whole(pixels) for pixels in self.inputs]

    @property
    def dense(self) -> Model:
        return without_gates(self.model)


def as_images(inputs: np.ndarray) -> ImageSet:
    """Model inputs as an image set."""
    names = tuple(f"input-{i}" for i in range(len(inputs)))
    return ImageSet(inputs, names, None, "0" * 64, "npz")


@cache
def load_golden(name: str) -> Golden:
    pytest.importorskip("torch")
    meta = json.loads(golden_file(name, "meta.json").read_text())
    with np.load(golden_file(name, "io.npz")) as io:
        arrays = {key: io[key] for key in io.files}
    inputs = arrays["input"]
    no_gates = np.zeros((0, len(inputs), 0), np.float32)
    margin = arrays.get("gate_logits", no_gates).transpose(1, 0, 2)
    return Golden(
        name,
        load_model(checkpoint_of(name), overrides=SETTINGS[name]),
        meta,
        inputs,
        arrays["logits"],
        arrays.get("keep_masks", no_gates).transpose(1, 0, 2).astype(bool),
        np.where(np.isnan(margin), np.float32(np.inf), margin),
    )


@pytest.fixture(autouse=True, scope="session")
def one_thread_each() -> Iterator[None]:
    """Has sessions of no set number of threads run on one, for tests run beside each other."""
    make = Sessions._options

    def made_for_one(sessions: Sessions) -> Any:
        options = make(sessions)
        options.intra_op_num_threads = sessions.threads or 1
        return options

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sessions, "_options", made_for_one)
        yield


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """A golden by name."""
    return load_golden


WHOLE = {"rcnn": "detect", "cascade": "cascade"}
"""The task of a golden that is a whole detector, by the end of its name."""


@dataclass(frozen=True)
class DetectionGolden:
    """A checkpoint, its models, and what the official code computes: the arrays of io.npz."""

    name: str
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    backbone: Model
    detector: Model | None

    @property
    def path(self) -> Path:
        return checkpoint_of(self.name)

    def features(self, size: str) -> dict[str, np.ndarray]:
        """The maps of an image of a size, such as `96x128`; the finest of some is left out."""
        keys = {f"stride_{2 << i}": f"f{i}_{size}" for i in (1, 2, 3, 4)}
        return {name: self.arrays[key] for name, key in keys.items() if key in self.arrays}


@cache
def load_detection_golden(name: str) -> DetectionGolden:
    pytest.importorskip("torch")
    path, told = checkpoint_of(name), SETTINGS[name]
    whole = WHOLE.get(name.rpartition("_")[2])
    with np.load(golden_file(name, "io.npz")) as io:
        arrays = {key: io[key] for key in io.files}
    return DetectionGolden(
        name,
        json.loads(golden_file(name, "meta.json").read_text()),
        arrays,
        load_model(path, task="backbone", overrides=told),
        load_model(path, task=whole, overrides=told) if whole else None,
    )


@pytest.fixture(scope="session")
def detection_golden() -> Callable[[str], DetectionGolden]:
    """A golden of a backbone for detection, or of a whole detector, by name."""
    return load_detection_golden


@pytest.fixture(autouse=True)
def signals_are_put_back() -> Iterator[None]:
    """What handles a signal is the whole process's: a test leaves it as it was."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs a command line in this process."""

    def run(*args: Any) -> Result:
        code = main([str(arg) for arg in args])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def after_run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any, Any], None]], None]:
    """Lets a function of feeds and outputs change what every run of ONNX Runtime gives."""

    def install(change: Callable[[Any, Any], None]) -> None:
        run = OnnxRuntimeEngine.run

        def changed(self: Any, feeds: Any, outputs: Any = None) -> Any:
            found = run(self, feeds, outputs)
            change(feeds, found)
            return found

        monkeypatch.setattr(OnnxRuntimeEngine, "run", changed)

    return install


@pytest.fixture(scope="session")
def digits() -> Model:
    """The trained toy model."""
    pytest.importorskip("torch")
    return load_model(DIGITS / "svit_digits.pth", arch=str(DIGITS / "arch.yaml"))


@pytest.fixture(scope="session")
def heldout() -> ImageSet:
    """Digits that the toy model was never trained on."""
    return load_images(DIGITS / "heldout.npz")


@pytest.fixture(scope="session")
def digits_bundle(
    digits: Model, heldout: ImageSet, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """The toy model in token mode dynamic; the first 8 held-out digits are its samples."""
    output = tmp_path_factory.mktemp("digits") / "dynamic"
    settings = ExportSettings(tokens=TokenMode.DYNAMIC, calibration=heldout[:8])
    return export_model(digits, output, settings)


@pytest.fixture(scope="session")
def digit_pictures(heldout: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some held-out digits, a folder per class, which is its name."""
    folder = tmp_path_factory.mktemp("digits") / "pictures"
    assert heldout.labels is not None
    for i, label in enumerate(heldout.labels[:40].tolist()):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(heldout.arrays[i]).save(folder / str(label) / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """Exports a golden once per session: name, token mode, and fields of `ExportSettings`.

    The golden's inputs are the bundle's samples; a budget lets everything through by default.
    """

    @cache
    def export_golden(name: str, mode: str, **settings: Any) -> Bundle:
        found = load_golden(name)
        chosen = ExportSettings(tokens=TokenMode(mode), calibration=found.images)
        if mode == "budget":
            chosen = replace(chosen, budget="1.0")
        output = tmp_path_factory.mktemp(f"{name}-{mode}") / "bundle"
        return export_model(found.model, output, replace(chosen, **settings))

    return export_golden


@pytest.fixture
def fake_process(monkeypatch, tmp_path_factory) -> pytest.MonkeyPatch:
    """Lets build processes import the fake library; cache files go to a folder of the test."""
    monkeypatch.syspath_prepend(str(TESTS.parent))
    monkeypatch.syspath_prepend(str(TESTS / "engines" / "tensorrt" / "packages"))
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))
    return monkeypatch
