"""Parity of an exported model with its reference, gate by gate, whatever the task.

Three kinds of runs, all of the exported graph:

1. every stage by itself, on the reference's values and decisions: no error hides behind another,
   and a wrong block is told from a wrong gate (`stages`);
2. as shipped: which decisions differ and by what margin, then what comes out (`parity`);
3. behaviour: alone and in a batch, repeated, all tokens kept, none kept (`behaviour`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svit_deploy.verify.expected import ExpectedResults, LiveReference, StoredReference
    from svit_deploy.verify.report import VerifyReport
    from svit_deploy.verify.run import verify_against, verify_bundle
    from svit_deploy.verify.settings import VerifySettings

__all__ = [
    "ExpectedResults",
    "LiveReference",
    "StoredReference",
    "VerifyReport",
    "VerifySettings",
    "verify_against",
    "verify_bundle",
]

_MODULES = {
    "expected": ("ExpectedResults", "LiveReference", "StoredReference"),
    "report": ("VerifyReport",),
    "run": ("verify_against", "verify_bundle"),
    "settings": ("VerifySettings",),
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for, and no more: the command line reads the settings for --help."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
