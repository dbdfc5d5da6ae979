"""What a package index gives for each extra on other machines; resolved, not installed.

SVIT_DEPLOY_INDEX=1 pytest tests/docs/test_resolution.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docs.project import EXTRAS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("uv") is None or not os.environ.get("SVIT_DEPLOY_INDEX"),
        reason="asks a package index; set SVIT_DEPLOY_INDEX=1, and pip install uv",
    ),
]
ROOT = Path(__file__).parents[2]
PC, JETSON = ("x86_64-manylinux_2_28", "3.11"), ("aarch64-manylinux_2_35", "3.10")
"""JetPack 6 is Ubuntu 22.04."""
FROM_SOURCE = {
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),  # they fetch wheels from NVIDIA's
    "tensorrt-rtx": ("tensorrt-rtx-cu13",),  # it has nothing to compile
    "serve": ("psutil",),  # kserve asks for a release without wheels for aarch64
}
"""Packages without wheels on one of these machines, by the extra that brings them."""


def resolve(extra: str, machine: tuple[str, str]) -> dict[str, str]:
    """Versions by package."""
    platform, python = machine
    built = [f"--no-binary={name}" for name in FROM_SOURCE.get(extra, ())]
    done = subprocess.run(
        [
            "uv", "pip", "compile", "pyproject.toml", "--quiet", "--no-annotate", "--no-header",
            "--extra", extra, "--python-platform", platform, "--python-version", python,
            "--only-binary", ":all:", *built,
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^([\w.-]+)==(\S+)", done.stdout, re.M))


@pytest.mark.parametrize("machine", [PC, JETSON], ids=["pc", "jetson"])
@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - {"docs", "dev"}))
def test_an_extra_can_be_installed(extra, machine):
    found = resolve(extra, machine)
    runtimes = {"onnxruntime", "onnxruntime-gpu"} & found.keys()
    assert len(runtimes) == (extra in ("cpu", "gpu"))
    if extra == "gpu":
        assert runtimes == {"onnxruntime-gpu" if machine is PC else "onnxruntime"}
    if extra == "jetson":
        assert found["cuda-bindings"].startswith("12.")
        assert not any("tensorrt" in name or "torch" in name for name in found)
    if extra == "tensorrt-rtx":
        assert ("tensorrt-rtx-cu13" in found) == (machine is PC)
