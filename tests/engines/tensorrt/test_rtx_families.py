"""TensorRT-RTX parses and builds what every method writes, without a GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from svit_deploy.engines.tensorrt.build import build_engine
from svit_deploy.engines.tensorrt.settings import BuildSettings
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.model.config import TokenMode
from svit_deploy.model.model import Model
from svit_deploy.model.profiles import Profile
from svit_deploy.tasks import TASKS
from tests.engines.tensorrt.shallow import shallow_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="its wheels are for Linux here"),
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None,
        reason="TensorRT-RTX is not installed: pip install 'svit-deploy[tensorrt-rtx]'",
    ),
]

STATIC = (
    "dynamicvit",
    "dynamicvit_lvvit",
    "dynamicvit_swin",
    "dynamicvit_convnext",
    "evit",
    "evit_lvvit",
    "mergence_lvvit",
    "tome_lvvit",
    "evovit",
    "tome",
    "mergence",
    "multiscale",
    "multiscale_lvvit",
    "stvit",
    "stvit_lvvit",
    "stvit_swin",
    "stvitr",
)


def check_build(model: Model, folder: Path, profile: Profile, **settings: Any) -> None:
    """Exports a model and builds its engine, for these shapes."""
    chosen = ExportSettings(**settings)
    task = TASKS[chosen.task]
    sizes = task.parse_sizes("x".join(map(str, profile.opt[2:]))) if task.many_sizes else None
    bundle = export_model(model, folder / "bundle", chosen, sizes=sizes)
    built = BuildSettings(
        "tensorrt-rtx",
        profiles=(profile,),
        precision=bundle.precision,
        tokens=bundle.mode.value,
        num_heads=bundle.config.num_heads,
    )
    sidecar = build_engine(bundle.model_path, folder, built)
    assert (folder / sidecar.engine).stat().st_size > 0


def batches(model: Model) -> Profile:
    return Profile(*((batch, *model.config.input_shape) for batch in (1, 2, 4)))


@pytest.mark.parametrize(
    ("family", "precision"),
    [*((family, "fp16") for family in STATIC), ("tome", "fp32"), ("stvit", "fp32")],
)
def test_static_graphs_build(tmp_path: Path, family: str, precision: str) -> None:
    model = shallow_model(family)
    check_build(model, tmp_path, batches(model), tokens=TokenMode.STATIC, precision=precision)


@pytest.mark.parametrize(
    ("family", "precision"), [("swin", "fp16"), ("lvvit", "fp16"), ("convnext", "fp16")]
)
def test_backbones_build(tmp_path: Path, family: str, precision: str) -> None:
    """Those that no other test builds; `test_rtx_build.py` has DeiT, `test_detectors.py` more."""
    model = shallow_model(family)
    check_build(model, tmp_path, batches(model), tokens=TokenMode.DENSE, precision="fp16")


@pytest.mark.parametrize(
    ("family", "frames", "side"), [("video_swin", 20, 48), ("stvit_video", 4, 224)]
)
def test_videos_build(tmp_path: Path, family: str, frames: int, side: int) -> None:
    """Convolutions, paddings and windows of three axes; semantic tokens of frames."""
    model = shallow_model(family, frames=frames, image_size=(side, side))
    check_build(model, tmp_path, batches(model), task="video", precision="fp16")


def test_ats_masked_builds(tmp_path: Path) -> None:
    """Its sampling, in static shapes; packing them is for ONNX Runtime."""
    model = shallow_model("ats")
    check_build(model, tmp_path, batches(model), tokens=TokenMode.MASKED)


@pytest.mark.parametrize("mode", [TokenMode.BUDGET, TokenMode.MASKED])
def test_avit_builds(tmp_path: Path, mode: TokenMode) -> None:
    model, budget = shallow_model("avit"), "0.7" if mode is TokenMode.BUDGET else None
    check_build(model, tmp_path, batches(model), tokens=mode, budget=budget, precision="fp16")


@pytest.mark.parametrize(
    ("family", "mode"),
    [
        ("evovit_adapter", TokenMode.STATIC),
        ("dynamicvit_adapter", TokenMode.STATIC),
        ("evit_adapter", TokenMode.STATIC),
        ("ats_adapter", TokenMode.MASKED),
        ("svit_adapter_variant", TokenMode.MASKED),
        ("vit_window_adapter", TokenMode.DENSE),
        ("swin_pyramid", TokenMode.DENSE),
        ("stvitr_pyramid", TokenMode.STATIC),
    ],
)
def test_methods_build_inside_an_adapter(tmp_path: Path, family: str, mode: TokenMode) -> None:
    profile = Profile(*[(1, 3, 64, 96)] * 3)
    model = shallow_model(family)
    check_build(model, tmp_path, profile, task="backbone", tokens=mode, precision="fp16")
