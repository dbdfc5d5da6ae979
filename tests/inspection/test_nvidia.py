"""What doctor says of NVIDIA's software, found and missing."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from importlib import metadata

import pytest

from svit_deploy.errors import CapabilityError
from svit_deploy.inspection import nvidia
from svit_deploy.inspection.doctor import examine
from svit_deploy.inspection.nvidia import COMMANDS, examine_nvidia

MODULES = {"tensorrt": "10.16.1.11", "tensorrt_rtx": "1.7.1.116", "cuda.bindings": "13.0.1"}


def find_library(there):
    if not there:
        raise CapabilityError("no TensorRT plugin library in ~", "run svit-deploy plugins build")
    return "libsvit_trt.so"


@pytest.fixture
def machine(monkeypatch):
    """Looks at a machine with the given modules and tools."""

    def look(tools=("nvcc", "cmake", "nvidia-smi"), library=True, **modules):
        versions = {**MODULES, **modules}
        names = {"tensorrt_rtx_cu13": "tensorrt_rtx", "cuda-bindings": "cuda.bindings"}

        def version(name):
            found = versions.get(names.get(name, name), "99.0")
            if found == "unknown":
                raise metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(importlib.util, "find_spec", lambda name: versions.get(name))
        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(
            shutil, "which", lambda tool, path=None: tool if tool in tools else None
        )
        monkeypatch.setattr(nvidia, "library_path", lambda: find_library(library))
        return {
            name: (state, detail, needed, fix)
            for name, state, detail, needed, fix in examine_nvidia()
        }

    return look


def test_all_there(machine):
    found = machine()
    assert {state for state, *_ in found.values()} == {"ok"}
    assert found["tensorrt"][1] == "10.16.1.11"
    assert not any(fix for *_, fix in found.values())
    assert {command for _, _, needed, _ in found.values() for command in needed} == set(COMMANDS)


def test_nothing_there(machine):
    found = machine(tools=(), library=False, **dict.fromkeys(MODULES))
    assert found.pop("plugin library") == (
        "unusable",
        "no TensorRT plugin library in ~",
        ("export --target tensorrt --plugins",),
        "svit-deploy plugins build",
    )
    assert found.pop("nvidia driver")[0] in ("ok", "missing")  # /proc tells it, too
    assert {state for state, *_ in found.values()} == {"missing"}
    assert all(fix for *_, fix in found.values())
    assert "svit-deploy[tensorrt-rtx]" in found["tensorrt_rtx"][3]


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        ("NVIDIA L4, 8.9\n", "found: NVIDIA L4 (compute capability 8.9)"),
        (
            "NVIDIA A10, 8.6\nNVIDIA B200, 10.0\n",
            "found: NVIDIA A10 (compute capability 8.6, no products of fp8), "
            "NVIDIA B200 (compute capability 10.0)",
        ),
        ("Orin (nvgpu), [N/A]\n", "found"),
        ("", "found"),
        (None, "found"),
    ],
)
def test_the_gpus_and_what_they_lack(machine, monkeypatch, said, detail):
    def run(command, **options):
        assert command == ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
        if said is None:  # an option that it does not know
            raise subprocess.CalledProcessError(2, command)
        return subprocess.CompletedProcess(command, 0, said, "")

    monkeypatch.setattr(subprocess, "run", run)
    assert machine()["nvidia driver"][1] == detail


def test_old_and_unknown_versions(machine):
    state, detail, needed, _ = machine(tensorrt="10.2.0")["tensorrt"]
    assert (state, detail) == ("too old", "10.2.0, needs 10.3")
    assert needed == ("export --target tensorrt", "export --target tensorrt --plugins")
    assert machine(tensorrt="unknown")["tensorrt"][:2] == ("ok", "installed, version unknown")


def test_cuda_compiler_of_a_toolkit_that_is_not_on_the_path(machine, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", "/opt/cuda")
    assert machine(tools=("/opt/cuda/bin/nvcc",))["nvcc"][:2] == ("ok", "/opt/cuda/bin/nvcc")
    usual = "/usr/local/cuda/bin/nvcc"
    assert machine(tools=(usual,))["nvcc"][:2] == ("ok", usual)
    state, detail, needed, fix = machine(tools=())["nvcc"]
    assert (state, detail) == ("missing", "no CUDA compiler (nvcc) found")
    assert needed == ("plugins build",)
    assert fix == "install the CUDA toolkit, or name its nvcc with --nvcc"


def test_doctor_lists_them(machine):
    machine(tensorrt=None)
    diagnosis = examine()
    assert diagnosis.commands["export --target tensorrt"] == ("tensorrt is missing",)
    assert diagnosis.commands["plugins build"] == ()
