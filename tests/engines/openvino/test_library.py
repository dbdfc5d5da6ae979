"""OpenVINO's devices and precisions, and what its import does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from svit_deploy.engines.openvino.library import (
    check_precision,
    describe_devices,
    find_device,
    one_line,
)
from svit_deploy.errors import CapabilityError, UsageError


def core(*devices: str, able: tuple[str, ...] = ()) -> Any:
    """An `openvino.Core` with some devices."""
    return SimpleNamespace(available_devices=devices, get_property=lambda device, name: able)


@pytest.mark.parametrize(
    ("here", "wanted", "found"),
    [
        (("CPU",), "cpu", "CPU"),
        (("CPU", "GPU"), "GPU", "GPU"),
        (("CPU", "GPU"), "GPU.0", "GPU.0"),
        (("CPU", "GPU.0", "GPU.1"), "gpu", "GPU"),
        (("CPU", "GPU.0", "GPU.1"), "GPU.1", "GPU.1"),
    ],
)
def test_devices_by_name(here, wanted, found):
    assert find_device(core(*here), wanted) == found


@pytest.mark.parametrize("wanted", ["GPU", "NPU", "GPU.1"])
def test_an_absent_device(wanted):
    with pytest.raises(CapabilityError, match=rf"finds no {wanted} here, only CPU; .*--device CPU"):
        find_device(core("CPU"), wanted)


@pytest.mark.parametrize("wanted", ["TPU", "AUTO", "0", "", "GPU.x", "MULTI:CPU"])
def test_no_device(wanted):
    with pytest.raises(UsageError, match="use CPU, GPU, NPU"):
        find_device(core("CPU"), wanted)


def test_a_precision_that_a_device_lacks():
    check_precision(core(able=("FP32", "INT8")), "CPU", "fp32")
    with pytest.raises(
        CapabilityError, match=r"CPU here does not compute in bf16; .*--engine-precision f32"
    ):
        check_precision(core(able=("FP32", "INT8")), "CPU", "bf16")
    with pytest.raises(CapabilityError, match="use --engine-precision f16"):
        check_precision(core(able=("FP16", "INT8")), "NPU", "fp32")


def test_devices_in_words():
    assert "CPU in f32" in describe_devices()


def test_importing_it_tells_nobody():
    """OpenVINO's own import sends an event to a server if its telemetry is installed."""
    script = (
        "import sys; from svit_deploy.engines.openvino.library import import_openvino\n"
        "import_openvino().Core()\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert done.stdout == "[]\n", done.stderr


def test_messages_lose_places_in_source_code():
    text = (
        "Exception from src/inference/src/cpp/infer_request.cpp:224:\n"
        "Check 'a.isCompatible(dims)' failed at src/plugins/intel_cpu/src/memory_desc.h:99:\n"
        "ParameterMismatch: can not clone.\n\n"
    )
    assert one_line(text) == "ParameterMismatch: can not clone"
