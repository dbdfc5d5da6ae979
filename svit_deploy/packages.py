"""Packages that only some commands need."""

from __future__ import annotations

import importlib

from svit_deploy.errors import CapabilityError


def require_torch(who: str, why: str, otherwise: str = "") -> None:
    """Raises CapabilityError unless PyTorch can be imported.

    Args:
        who: what needs it.
        why: what for.
        otherwise: what to do without it.
    """
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: one of its libraries is missing
        missing = isinstance(error, ModuleNotFoundError)
        state = "not installed" if missing else f"broken ({str(error).splitlines()[0][:200]})"
        fix = "run pip install 'svit-deploy[torch]'"
        raise CapabilityError(
            f"{who} needs PyTorch for {why}, and it is {state}",
            f"{fix}, or {otherwise}" if otherwise else fix,
        ) from error


def require(module: str, who: str, why: str) -> None:
    """Raises CapabilityError unless a package that only detection needs can be imported."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:
        missing = isinstance(error, ModuleNotFoundError)
        state = "not installed" if missing else f"broken ({str(error).splitlines()[0][:200]})"
        raise CapabilityError(
            f"{who} needs {module} for {why}, and it is {state}",
            "run pip install 'svit-deploy[detect]'",
        ) from error
