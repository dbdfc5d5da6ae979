"""Runs a bundle on pictures and draws what comes out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svit_deploy.predict.predictions import predict_images
    from svit_deploy.predict.token_maps import draw_token_maps

__all__ = ["draw_token_maps", "predict_images"]

_MODULES = {"predict_images": "predictions", "draw_token_maps": "token_maps"}


def __getattr__(name: str) -> Any:
    """Imports what is asked for, and no more: the command line reads the settings for --help."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
