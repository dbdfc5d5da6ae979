"""Exported models on an NVIDIA GPU: ONNX Runtime's CUDA provider, and TensorRT engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from svit_deploy import api
from svit_deploy.bundle.bundle import Bundle
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.engines.tensorrt.gpu import find_gpu
from svit_deploy.errors import CapabilityError
from svit_deploy.machine.tensorrt import TARGETS, load_library
from tests.conftest import GOLDEN
from tests.told import SETTINGS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_gpu() is None, reason="no NVIDIA GPU"),
]
MODES = ("dynamic", "budget", "masked", "dense")
DETECTION = {"backbone": "svit_adapter", "detect": "svit_mask_rcnn"}


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., Bundle]:
    """Exports a golden of a task."""

    def make(task: str, mode: str, **options: Any) -> Bundle:
        name, sizes = "svit_cls", {}
        if task in DETECTION:
            pytest.importorskip("torchvision")
            name, sizes = DETECTION[task], {"image_size": "64x64:96x128:256x256"}
        if mode == "budget":
            options["budget"] = "1.0"
        checkpoint = GOLDEN / name / "checkpoint.pth"
        common = {"task": task, "tokens": mode, "overrides": SETTINGS[name], **sizes}
        return api.export(checkpoint, tmp_path / "bundle", **common, **options)

    return make


@pytest.fixture(scope="module")
def target() -> str:
    """The TensorRT that is installed."""
    reasons = []
    for name in TARGETS:
        try:
            load_library(name)
            return name
        except CapabilityError as error:
            reasons.append(error.message)
    pytest.skip("; ".join(reasons))


@pytest.mark.parametrize("task", ["classify", *DETECTION])
@pytest.mark.parametrize("mode", MODES)
def test_cuda_provider(export: Callable[..., Bundle], task: str, mode: str) -> None:
    bundle = export(task, mode)
    try:
        OnnxRuntimeEngine(bundle.model_path, provider="cuda").close()
    except CapabilityError as error:
        pytest.skip(error.message)
    report = api.verify(bundle.path, provider="cuda")
    assert report.passed, report.verdict
    assert report.engine["provider"] == "CUDAExecutionProvider"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("mode", ["budget", "masked", "dense"])
@pytest.mark.parametrize("task", ["classify", *DETECTION])
def test_engine(
    export: Callable[..., Bundle], target: str, task: str, mode: str, precision: str
) -> None:
    bundle = export(task, mode, precision=precision, target=target, batch="1:1:2")
    report = api.verify(bundle.path)
    assert report.passed, report.verdict
    assert report.engine["runtime"] == target
