"""A thin stand-in for TensorRT and the CUDA runtime: enough rules to break, no GPU."""

from __future__ import annotations

from types import ModuleType

from tests.engines.tensorrt.fake.builder import builder_side
from tests.engines.tensorrt.fake.cuda import Device
from tests.engines.tensorrt.fake.runtime import runtime_side


def make_module(version: str, name: str = "tensorrt", device: Device | None = None) -> ModuleType:
    """The module `tensorrt` or `tensorrt_rtx` of a version, with that version's names.

    Args:
        device: the GPU it runs on.
    """
    device = device or Device()
    module = ModuleType(name)
    vars(module).update(runtime_side(name, version, device))
    vars(module).update(builder_side(name, version, device))
    return module
