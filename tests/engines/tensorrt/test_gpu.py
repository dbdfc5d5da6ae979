"""Which GPU there is to build on, and no exception where there is none."""

from __future__ import annotations

import sys

import pytest

from svit_deploy.engines.device.cuda import Gpu
from svit_deploy.engines.tensorrt.gpu import Versions, find_gpu, require_gpu
from svit_deploy.errors import CapabilityError, UsageError
from tests.engines.tensorrt.fake.cuda import Device, make_cuda


@pytest.fixture
def device(monkeypatch) -> Device:
    device = Device()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", make_cuda(device))
    return device


def test_the_gpu_and_its_versions(device):
    device.capability, device.driver = (8, 7), 13020
    gpu = Gpu("NVIDIA Fake 9000", "8.7")
    assert find_gpu() == gpu
    assert require_gpu() == (gpu, Versions(cuda="13.0", driver="13.2"))
    assert gpu.sm == "sm87"


@pytest.mark.parametrize("changes", [{"count": 0}, {"driver": 0}, {"driver": 11080}])
def test_no_gpu_is_none(device, changes):
    vars(device).update(changes)
    assert find_gpu() is None
    with pytest.raises(CapabilityError):
        require_gpu()


def test_no_such_gpu(device):
    assert find_gpu(3) is None
    with pytest.raises(UsageError, match="there is no GPU 3"):
        require_gpu(3)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    assert find_gpu() is None
    with pytest.raises(CapabilityError, match="cuda-bindings, which is not installed; run: pip"):
        require_gpu()


def test_this_machine():
    gpu = find_gpu()
    assert gpu is None or gpu.sm.removeprefix("sm").isdigit()
