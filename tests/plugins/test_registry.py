"""The library in a real plugin registry: TensorRT-RTX's, which needs no GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svit_deploy.plugins import AUTOREGISTER, NAMES
from svit_deploy.plugins.build import read_tensorrt_version

ALL = sorted(NAMES)
Steps = Callable[..., list[list[Any]]]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where TensorRT-RTX stands in for libnvinfer."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("TensorRT-RTX is not installed: pip install 'svit-deploy[tensorrt-rtx]'")
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    assert spec and spec.submodule_search_locations
    (real,) = Path(next(iter(spec.submodule_search_locations))).glob("libtensorrt_rtx.so.*")
    folder = tmp_path_factory.mktemp("runtime")
    for name in ("libtensorrt_rtx.so", "libnvinfer.so.10", "libnvinfer.so.11"):
        (folder / name).symlink_to(real)
    return folder


@pytest.fixture
def steps(runtime: Path) -> Steps:
    """Runs `registry_steps.py`; result and registered plugins after each step."""

    def run(*steps: str, preload: Path | None = None) -> list[list[Any]]:
        environment = os.environ | {"LD_LIBRARY_PATH": str(runtime)}
        if preload:
            environment["LD_PRELOAD"] = str(preload)
        script = Path(__file__).parent / "registry_steps.py"
        done = subprocess.run(
            [sys.executable, script, *steps], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])  # the library's messages come before

    return run


@pytest.fixture
def autoregister(tensorrt_include: Path, library: Path) -> Path:
    version = read_tensorrt_version(tensorrt_include)
    if int(version.split(".")[0]) < 11:
        pytest.skip("TensorRT-RTX has the plugin registry of TensorRT 11")
    return library.with_name(AUTOREGISTER)


def test_registry_loads_the_library(steps: Steps, library: Path):
    assert steps(f"load={library}") == [[True, ALL]]


@pytest.mark.parametrize("form", ["32:32:BOOL", "64:32:BOOL", "64:32:INT8"])
def test_builder_accepts_the_plugins(steps: Steps, library: Path, form: str):
    """A mask, two size tensors, empty and data-dependent shapes: all as the builder asks."""
    _, (engine_bytes, registered) = steps(f"load={library}", f"build={form}")
    assert engine_bytes > 1000
    assert registered == ALL


def test_builder_refuses_other_index_bits(steps: Steps, library: Path):
    _, (engine_bytes, _) = steps(f"load={library}", "build=16:32:BOOL")
    assert engine_bytes == 0


def test_autoregister_registers_when_loaded(steps: Steps, autoregister: Path):
    assert steps(f"dlopen={autoregister}", "build=64:32:BOOL")[0] == [True, ALL]
    (loaded,) = steps(f"dlopen={autoregister}", preload=autoregister)
    assert loaded == [True, ALL]


def test_autoregister_after_the_library_adds_nothing(
    steps: Steps, library: Path, autoregister: Path
):
    assert steps(f"load={library}", f"dlopen={autoregister}") == [[True, ALL], [True, ALL]]


def test_library_after_autoregister_is_refused(steps: Steps, library: Path, autoregister: Path):
    """Why these are two files: TensorRT takes no library whose plugins it has already."""
    assert steps(f"dlopen={autoregister}", f"load={library}") == [[True, ALL], [False, ALL]]
