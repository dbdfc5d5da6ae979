"""Latency as a function of content: interleaved, paired, on distinct images."""

from svit_deploy.bench.plots import check_plot, plot_sweep
from svit_deploy.bench.render import render
from svit_deploy.bench.report import BenchReport
from svit_deploy.bench.run import run_bench
from svit_deploy.bench.settings import BenchSettings, BenchTarget, Provenance

__all__ = [
    "BenchReport",
    "BenchSettings",
    "BenchTarget",
    "Provenance",
    "check_plot",
    "plot_sweep",
    "render",
    "run_bench",
]
