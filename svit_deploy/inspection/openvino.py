"""Whether OpenVINO is here, and its devices, for `doctor`."""

from __future__ import annotations

from svit_deploy.errors import CapabilityError
from svit_deploy.inspection.nvidia import Found
from svit_deploy.machine.environment import installed_version, release

ON_OPENVINO = "--engine openvino"
OLDEST = "2025.4"


def examine_openvino() -> Found:
    """Imports OpenVINO where it is installed: only that tells its devices."""
    version = installed_version("openvino")
    install = f'pip install --upgrade "openvino>={OLDEST}"'
    if version is None:
        return "openvino", "missing", "not installed", (ON_OPENVINO,), install
    if release(version) < release(OLDEST):
        detail = f"{version}, needs {OLDEST}"
        return "openvino", "too old", detail, (ON_OPENVINO,), install
    from svit_deploy.engines.openvino.library import describe_devices

    try:
        devices = describe_devices()
    except CapabilityError as error:
        return "openvino", "broken", f"{version}: {error.message}", (ON_OPENVINO,), install
    return "openvino", "ok", f"{version}; {devices}", (ON_OPENVINO,), ""
