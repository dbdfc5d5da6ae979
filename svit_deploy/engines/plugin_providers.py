"""Providers of ONNX Runtime that come as packages of their own and are registered when used."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

from svit_deploy.engines.onnxruntime_log import one_line
from svit_deploy.engines.providers import install_fix
from svit_deploy.errors import CapabilityError, UsageError

PACKAGES = {"NvTensorRTRTXExecutionProvider": "onnxruntime_ep_nv_tensorrt_rtx"}
"""The module that brings each, by the provider's full name."""


def installed_plugins() -> list[str]:
    """Full names of the plugin providers whose package is there; some cannot start."""
    return [name for name, module in PACKAGES.items() if importlib.util.find_spec(module)]


def plugin_device(ort: ModuleType, provider: str, number: int) -> Any:
    """Registers a plugin provider, once in a process, and gives a device that it can run on.

    Args:
        number: of the GPU; a plugin tells it as `device_id`.

    Raises:
        CapabilityError: its package or what that needs is missing, ONNX Runtime is too old for
            plugins, or there is no device for it.
        UsageError: it cannot run on the device of that number.
    """
    fix = install_fix(provider)
    if not hasattr(ort, "register_execution_provider_library"):
        raise CapabilityError(
            f"ONNX Runtime {ort.__version__} takes no plugin providers such as {provider}",
            "run: pip install --upgrade onnxruntime-gpu",
        )
    if not (found := _devices(ort, provider)):
        try:
            library = importlib.import_module(PACKAGES[provider]).get_library_path()
            ort.register_execution_provider_library(provider, library)
        except ImportError as error:
            raise CapabilityError(f"the package of {provider} is not installed", fix) from error
        except Exception as error:  # ONNX Runtime's exceptions share no narrower class
            raise CapabilityError(
                f"{provider} could not start: {one_line(str(error))}", fix
            ) from error
        found = _devices(ort, provider)
    if not found:
        raise CapabilityError(f"{provider} finds no device that it can run on here", fix)
    numbered = {str(d.ep_options.get("device_id", i)): d for i, d in enumerate(found)}
    if str(number) not in numbered:
        raise UsageError(
            f"{provider} cannot run on device {number}, only on {', '.join(numbered)}",
            "give --device one of these",
        )
    return numbered[str(number)]


def _devices(ort: ModuleType, provider: str) -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == provider]
