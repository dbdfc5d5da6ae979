"""The OpenVINO library: imported in silence, its devices and what each can compute."""

from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import Any

from svit_deploy.engines.settings import PRECISIONS
from svit_deploy.errors import CapabilityError, UsageError

DEVICES = ("CPU", "GPU", "NPU")
INSTALL = "run: pip install 'svit-deploy[openvino]'"
_TELEMETRY = "openvino_telemetry"


def import_openvino() -> ModuleType:
    """The library, without its telemetry: importing it would tell a server on the internet.

    Raises:
        CapabilityError: it is missing or broken.
    """
    silence = _TELEMETRY not in sys.modules
    if silence:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # then OpenVINO does without
    try:
        import openvino
    except (ImportError, OSError) as error:
        raise CapabilityError(
            f"OpenVINO cannot be imported: {one_line(str(error))}", INSTALL
        ) from error
    finally:
        if silence:
            del sys.modules[_TELEMETRY]
    return openvino


def require_device(precision: str, device: str) -> None:
    """Raises a SvitDeployError unless a device here computes in a precision.

    Raises:
        UsageError: an unknown device.
        CapabilityError: OpenVINO or the device is missing, or it lacks the precision.
    """
    core = import_openvino().Core()
    check_precision(core, find_device(core, device), precision)


def find_device(core: Any, wanted: str) -> str:
    """A device's name as OpenVINO writes it.

    Args:
        core: an `openvino.Core`.
        wanted: CPU, GPU or NPU, or one of several such as GPU.1, in any case.

    Raises:
        UsageError: no such name.
        CapabilityError: no such device here.
    """
    name = wanted.upper()
    kind, _, number = name.partition(".")
    if kind not in DEVICES or (number and not number.isdigit()):
        raise UsageError(
            f"OpenVINO's device {wanted!r} is unknown",
            f"use {', '.join(DEVICES)}, or the second of several as in GPU.1",
        )
    here = list(core.available_devices)
    if name in here or f"{name}.0" in here or name.removesuffix(".0") in here:
        return name
    raise CapabilityError(
        f"OpenVINO finds no {name} here, only {', '.join(here)}",
        f"install the driver of the {kind}, or use --device {here[0]}" if here else INSTALL,
    )


def describe_devices() -> str:
    """The devices here and in which precisions each computes, in words.

    Raises:
        CapabilityError: OpenVINO is missing or broken.
    """
    core = import_openvino().Core()
    told = (
        f"{device} in {', '.join(PRECISIONS[name] for name in able_in(core, device))}"
        for device in core.available_devices
    )
    return "; ".join(told) or "no device"


def check_precision(core: Any, device: str, precision: str) -> None:
    """Raises CapabilityError for a precision in which a device cannot compute."""
    able = able_in(core, device)
    if precision not in able:
        raise CapabilityError(
            f"OpenVINO's {device} here does not compute in {PRECISIONS[precision]}",
            f"use --engine-precision {' or '.join(PRECISIONS[name] for name in able)}",
        )


def able_in(core: Any, device: str) -> list[str]:
    """The precisions in which a device computes."""
    able = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
    return [name for name in PRECISIONS if name.upper() in able]


def one_line(text: str, limit: int = 240) -> str:
    """A message of OpenVINO without line breaks and places in its source code."""
    text = re.sub(r"Exception from \S+:\d+:|\bat (src/)?\S+\.(cpp|hpp|h):\d+:?", "", text)
    text = re.sub(r"Check '[^']*' failed", "", text)
    text = " ".join(text.split()).strip(" .:")
    return text if len(text) <= limit else text[: limit - 3] + "..."
