"""CUDA graphs side by side: one target with them, and one without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from svit_deploy.bench.settings import BenchSettings, BenchTarget
from svit_deploy.engines.base import Engine
from svit_deploy.engines.runtimes import Runtime

OPTION = "cuda_graph"


def by_graph_mode(
    runtime: Runtime, settings: BenchSettings, make: Callable[[BenchSettings, str], BenchTarget]
) -> list[BenchTarget]:
    """One target, or two with `--cuda-graph both` where that means something to what runs it.

    Args:
        make: a target for settings; given besides what to add to its label.
    """
    if settings.cuda_graph != "both" or not runtime.means(OPTION, settings):
        return [make(settings, "")]
    return [make(replace(settings, cuda_graph=mode), f", graph {mode}") for mode in ("on", "off")]


def graph_note(engine: Engine) -> list[str]:
    """Why an engine uses no CUDA graphs, where it was left to it."""
    graphs = engine.description.get(OPTION) or {}
    if graphs.get("mode") != "auto" or graphs.get("reason") is None:
        return []
    return [f"no CUDA graph: {graphs['reason']}"]
