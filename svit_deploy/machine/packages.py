"""Packages that only some commands need."""

from __future__ import annotations

import importlib

from svit_deploy.errors import CapabilityError


def require_torch(who: str, why: str, otherwise: str = "") -> None:
    """Raises CapabilityError unless PyTorch can be imported; see `require`."""
    require("torch", who, why, extra="torch", called="PyTorch", otherwise=otherwise)


def require_onnxruntime(who: str, why: str) -> None:
    """Raises CapabilityError unless ONNX Runtime can be imported; see `require`."""
    gpu = "'svit-deploy[gpu]' for NVIDIA GPUs"
    require("onnxruntime", who, why, extra="cpu", called="ONNX Runtime", otherwise=gpu)


def require(
    module: str,
    who: str,
    why: str,
    *,
    extra: str = "detect",
    called: str = "",
    otherwise: str = "",
) -> None:
    """Raises CapabilityError unless a package can be imported.

    Args:
        who: what needs it.
        why: what for.
        extra: the extra of svit-deploy that brings it.
        called: its name in sentences, if not the module's.
        otherwise: what to do without it.
    """
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: one of its libraries is missing
        missing = isinstance(error, ModuleNotFoundError)
        state = "not installed" if missing else f"broken ({str(error).splitlines()[0][:200]})"
        fix = f"run pip install 'svit-deploy[{extra}]'"
        raise CapabilityError(
            f"{who} needs {called or module} for {why}, and it is {state}",
            f"{fix}, or {otherwise}" if otherwise else fix,
        ) from error
