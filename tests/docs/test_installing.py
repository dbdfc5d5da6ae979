"""What each way of installing brings, in pyproject.toml and on the page."""

from __future__ import annotations

import re

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

from tests.docs.pages import text_of
from tests.docs.project import EXTRAS, PROJECT

RUNTIMES = {"onnxruntime", "onnxruntime-gpu"}
PC = {"sys_platform": "linux", "platform_machine": "x86_64"}
MAC = {"sys_platform": "darwin", "platform_machine": "arm64"}
JETSON = {"sys_platform": "linux", "platform_machine": "aarch64"}


def brought(*extras: str, machine: dict[str, str] = PC) -> set[str]:
    """Packages that pip would install, one level deep, for extras of extras all the way."""
    wanted = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    packages = set()
    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate(
            default_environment() | machine
        ):
            inner = requirement.name == PROJECT["name"]
            packages |= (
                brought(*requirement.extras, machine=machine) if inner else {requirement.name}
            )
    return packages


def test_nothing_large_comes_by_itself():
    assert brought() == {
        "jinja2", "numpy", "onnx", "pillow", "pyyaml", "rich", "safetensors", "typer",
    }  # fmt: skip


@pytest.mark.parametrize("machine", [PC, MAC, JETSON], ids=["pc", "mac", "jetson"])
def test_each_choice_of_a_runtime_brings_one(machine):
    driven = {"onnxruntime-gpu", "cuda-bindings", "nvidia-ml-py"}
    gpu = driven if machine is PC else {"onnxruntime"}
    assert brought("cpu", machine=machine) - brought() == {"onnxruntime"}
    assert brought("gpu", machine=machine) - brought() == gpu


def test_no_other_extra_brings_a_runtime():
    for extra in EXTRAS.keys() - {"cpu", "gpu"}:
        assert not brought(extra) & RUNTIMES, f"{extra} could not be combined with the other"


def test_a_jetson_keeps_its_tensorrt():
    """JetPack's TensorRT 10.3 and driver of CUDA 12 must not be shadowed by PyPI's."""
    new = brought("jetson", machine=JETSON) - brought(machine=JETSON)
    assert new == {"cuda-bindings"}
    (bindings,) = map(Requirement, EXTRAS["jetson"])
    assert bindings.specifier.contains("12.9") and not bindings.specifier.contains("13.0")
    assert "--system-site-packages" in text_of("docs/installing.md")


def test_what_the_project_is_made_with_is_reachable():
    everything = brought(*EXTRAS)
    wanted = {"torch", "onnx", "onnxruntime-gpu", "tensorrt", "polygraphy", "typer"}
    assert wanted <= everything
    assert {"torch", "torchvision", "pycocotools", "matplotlib"} <= brought("all")
    assert "torch" not in brought("cpu", "gpu", "tensorrt", "tensorrt-rtx", "plugins", "debug")


def test_the_page_has_every_extra_and_what_it_brings():
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.+?) \|", text_of("docs/installing.md"), re.M))
    assert rows.keys() == EXTRAS.keys()
    for extra, cell in rows.items():
        for name in re.findall(r"`([\w-]+)`", cell):
            somewhere = brought(extra) | brought(extra, machine=MAC)
            assert name in EXTRAS or name in somewhere, f"{extra} does not bring {name}"
        told = set(re.findall(r"`([\w-]+)`", cell))
        direct = {Requirement(line).name for line in EXTRAS[extra]} - {PROJECT["name"]}
        if extra != "dev":
            assert {n for n in direct if not n.endswith(("_libs", "_bindings"))} <= told


def test_make_demo_installs_no_tools():
    makefile = text_of("Makefile")
    assert re.search(r"^\$\(VENV\)/demo: EXTRAS = \$\(RUNTIME\),torch$", makefile, re.M)
    assert re.search(r"^\$\(VENV\)/installed: EXTRAS = \$\(RUNTIME\),dev$", makefile, re.M)
    assert re.search(r"^demo: \$\(VENV\)/demo\b", makefile, re.M)
