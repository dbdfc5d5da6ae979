"""Engine files for the fake library, with their sidecars, and the fake library in place."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from svit_deploy.engines.device.cuda import Gpu
from svit_deploy.engines.tensorrt.sidecar import Sidecar, sidecar_path
from svit_deploy.io.files import hash_file
from svit_deploy.model.profiles import Profile
from tests.engines.tensorrt.fake import make_module
from tests.engines.tensorrt.fake.cuda import Device, make_cuda
from tests.engines.tensorrt.fake.runtime import Plan

VERSION = "10.16.1.11"
RTX_VERSION = "1.7.1.116"


def install(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    """Puts the fake CUDA runtime, TensorRT and TensorRT-RTX where imports find them."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", make_cuda(device))
    for name, version in (("tensorrt", VERSION), ("tensorrt_rtx", RTX_VERSION)):
        monkeypatch.setitem(sys.modules, name, make_module(version, name, device))


def write_engine(
    path: Path,
    model: onnx.ModelProto,
    profiles: tuple[Profile, ...],
    *,
    sidecar: dict[str, Any] | None = None,
    **plan: Any,
) -> Path:
    """Writes an engine that computes a graph, and its sidecar.

    Args:
        sidecar: fields that tell something else than the truth.
        plan: fields of `Plan`.
    """
    shapes = {
        model.graph.input[0].name: [[profile.min, profile.opt, profile.max] for profile in profiles]
    }
    made = Plan(
        model.SerializeToString(),
        [{name: three[i] for name, three in shapes.items()} for i in range(len(profiles))],
        **{"version": VERSION, **plan},
    )
    path.write_bytes(made.to_bytes())
    told = Sidecar(
        engine=path.name,
        engine_sha256=hash_file(path),
        engine_size=path.stat().st_size,
        onnx_sha256="0" * 64,
        target="tensorrt-rtx" if made.library == "tensorrt_rtx" else "tensorrt",
        tensorrt=made.version,
        precision="fp16",
        tokens="dense",
        profiles=profiles,
        gpu=Gpu("NVIDIA Fake 9000", "9.0"),
    )
    dataclasses.replace(told, **(sidecar or {})).write(path.parent)
    return path


def remove_sidecar(engine: Path) -> Path:
    sidecar_path(engine).unlink()
    return engine
