"""TensorRT-RTX parses and builds the static graph of every method, without a GPU."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from svit_deploy.bundle import MODEL
from svit_deploy.engines.tensorrt.build import build_engine
from svit_deploy.engines.tensorrt.settings import BuildSettings
from svit_deploy.model.profiles import Profile

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="its wheels are for Linux here"),
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None,
        reason="TensorRT-RTX is not installed: pip install 'svit-deploy[tensorrt-rtx]'",
    ),
]

STATIC = ("dynamicvit", "evit_fuse", "evovit", "tome", "stvitr", "mergence", "stvit", "swin")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", STATIC)
def test_static_graphs_build(export_recording, tmp_path, name, precision):
    mode = "dense" if name == "swin" else "static"
    bundle = export_recording(name, mode, precision=precision)
    size = bundle.config.image_size
    settings = BuildSettings(
        "tensorrt-rtx",
        profiles=(Profile(*((batch, 3, *size) for batch in (1, 2, 4))),),
        precision=precision,
        tokens=mode,
        num_heads=bundle.config.num_heads,
    )
    sidecar = build_engine(bundle.path / MODEL, tmp_path, settings)
    assert (tmp_path / sidecar.engine).stat().st_size > 0


def test_ats_masked_builds(export_recording, tmp_path):
    """Its sampling, in static shapes; packing them is for ONNX Runtime."""
    bundle = export_recording("ats", "masked")
    size = bundle.config.image_size
    settings = BuildSettings(
        "tensorrt-rtx",
        profiles=(Profile(*((batch, 3, *size) for batch in (1, 2, 4))),),
        precision="fp32",
        tokens="masked",
        num_heads=bundle.config.num_heads,
    )
    assert build_engine(bundle.path / MODEL, tmp_path, settings).engine
