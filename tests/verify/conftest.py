"""What the tests of a verification have in common: broken exporters, quick runs, a detector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest

from svit_deploy.bundle.bundle import Bundle
from svit_deploy.export import pipeline
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.images.sets import ImageSet
from svit_deploy.model.config import TokenMode
from svit_deploy.model.model import Model
from svit_deploy.verify.expected import LiveReference
from svit_deploy.verify.report import VerifyReport
from svit_deploy.verify.run import verify_against
from tests.shortened import shortened
from tests.verify.checks import SETTINGS


@pytest.fixture
def verify(golden: Any) -> Callable[..., VerifyReport]:
    """Verifies a bundle against a golden's checkpoint, or against a model."""

    def run(bundle: Bundle, model: Model | str = "svit_cls", images: Any = None) -> VerifyReport:
        model = golden(model).model if isinstance(model, str) else model
        return verify_against(bundle, LiveReference(bundle, model, images), SETTINGS)

    return run


@pytest.fixture
def parity_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out how a graph behaves, which costs more and cannot tell where it is wrong."""
    monkeypatch.setattr("svit_deploy.verify.run.check_behaviour", lambda *arguments: None)


# --- ways to break the exporter ----------------------------------------------------------------


@pytest.fixture
def model_fault(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Model], Model]], None]:
    """Graphs are written from a changed model."""

    def install(change: Callable[[Model], Model]) -> None:
        write = pipeline.build_graph
        monkeypatch.setattr(
            pipeline, "build_graph", lambda model, *rest: write(change(model), *rest)
        )

    return install


@pytest.fixture
def graph_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[[onnx.ModelProto], None]], None]:
    """Graphs are changed after they are written."""

    def install(change: Callable[[onnx.ModelProto], None]) -> None:
        finish = pipeline.finish

        def finish_broken(model: onnx.ModelProto, *rest: Any) -> onnx.ModelProto:
            change(model)
            return finish(model, *rest)

        monkeypatch.setattr(pipeline, "finish", finish_broken)

    return install


@pytest.fixture
def broken(golden: Any, tmp_path: Any) -> Callable[..., Bundle]:
    """Exports a golden, or a changed model, with the exporter as it is now."""

    def make(
        name: str = "svit_cls", mode: str = "dynamic", model: Model | None = None, **settings: Any
    ) -> Bundle:
        settings.setdefault("budget", "1.0" if mode == "budget" else None)
        settings.setdefault("calibration", golden(name).images)
        chosen = ExportSettings(tokens=TokenMode(mode), **settings)
        return export_model(model or golden(name).model, tmp_path / "broken", chosen)

    return make


# --- detectors ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def detector(detection_golden: Any) -> Model:
    """A golden detector with one interaction instead of four."""
    pytest.importorskip("torchvision")
    return shortened(detection_golden("svit_mask_rcnn").detector)


@pytest.fixture(scope="session")
def photo(detection_golden: Any) -> ImageSet:
    """One image of 96x128 pixels, preprocessed, in which the detector finds fifteen objects."""
    pixels = detection_golden("svit_mask_rcnn").arrays["input_0"]
    return ImageSet(pixels, ("photo",), None, "0" * 64, "npz")
