"""Latency as a function of content: interleaved, paired, on distinct images."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svit_deploy.bench.plots import check_plot, plot_sweep
    from svit_deploy.bench.printing import render
    from svit_deploy.bench.report import BenchReport
    from svit_deploy.bench.run import run_bench
    from svit_deploy.bench.settings import BenchSettings, BenchTarget, Provenance
    from svit_deploy.bench.targets import bench_paths

__all__ = [
    "BenchReport",
    "BenchSettings",
    "BenchTarget",
    "Provenance",
    "bench_paths",
    "check_plot",
    "plot_sweep",
    "render",
    "run_bench",
]

_MODULES = {
    "plots": ("check_plot", "plot_sweep"),
    "printing": ("render",),
    "report": ("BenchReport",),
    "run": ("run_bench",),
    "settings": ("BenchSettings", "BenchTarget", "Provenance"),
    "targets": ("bench_paths",),
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for, and no more: the command line reads the settings for --help."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
