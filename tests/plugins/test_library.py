"""The plugin library as TensorRT uses it, and the kernels on a GPU where there is one."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

GLUE = (
    "capabilities",
    "compact_shapes",
    "creators",
    "enqueue_of_nonsense",
    "enqueue_of_nothing",
    "enqueue_without_gpu",
    "fields",
    "formats",
    "row_shapes",
    "serialization",
    "types",
)
ON_GPU = ("gpu_bandwidth", "gpu_compact", "gpu_gather", "gpu_graph", "gpu_scatter")


def run(*command: str | Path) -> str:
    """What a program prints; what it complains about is the failure."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("test", GLUE)
def test_glue(host: Path, library: Path, test: str):
    printed = run(host, library, test)
    if "skipped" in printed:
        pytest.skip(printed.strip())


def test_every_test_of_the_programs_is_run(host: Path, kernels_host: Path, library: Path):
    assert run(host, library).split() == sorted(GLUE + ON_GPU)
    assert run(kernels_host).split() == sorted(ON_GPU)


@pytest.mark.gpu
@pytest.mark.parametrize("test", ON_GPU)
def test_kernels_on_gpu(gpu: int, kernels_host: Path, test: str):
    print(run(kernels_host, test), end="")


@pytest.mark.gpu
@pytest.mark.parametrize("test", ON_GPU)
def test_plugins_on_gpu(gpu: int, host: Path, library: Path, test: str):
    print(run(host, library, test), end="")


@pytest.mark.slow
def test_a_failing_check_fails(kernels_host: Path):
    """Without a GPU the tests for one cannot pass: the programs do report."""
    hidden = {"CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run([kernels_host, "gpu_gather"], capture_output=True, text=True, env=hidden)
    assert done.returncode == 1
    assert re.search(r"gpu\.cpp:\d+: ", done.stderr)


def test_library_exports_two_functions_and_needs_no_tensorrt(library: Path):
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("no readelf")
    symbols = run(readelf, "--dyn-syms", "--wide", library)
    defined = re.findall(r"GLOBAL\s+DEFAULT\s+\d+\s+([\w.]+)", symbols)
    assert sorted(defined) == ["getCreators", "setLoggerFinder"]
    assert "getPluginRegistry" not in symbols
    needed = re.findall(r"NEEDED.*\[(.*)\]", run(readelf, "-d", library))
    assert not [name for name in needed if "nvinfer" in name or "cuda" in name]
    assert ctypes.CDLL(str(library)).getCreators


def test_autoregister_needs_the_library_beside_it_and_tensorrt(library: Path):
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("no readelf")
    dynamic = run(readelf, "-d", library.with_name("libsvit_trt_autoreg.so"))
    needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
    assert library.name in needed
    assert [name for name in needed if re.fullmatch(r"libnvinfer\.so\.\d+", name)]
    assert "[$ORIGIN]" in dynamic
    assert "NODELETE" in dynamic
