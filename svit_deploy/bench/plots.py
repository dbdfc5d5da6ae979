"""The picture of a benchmark: latency over the keep ratio."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from svit_deploy.bench.report import BenchReport
from svit_deploy.errors import CapabilityError, UsageError


def plot_sweep(report: BenchReport, path: Path) -> None:
    """Draws every sweep of the report, one panel for each batch size.

    Args:
        path: the picture to write; its suffix names the format (.png, .svg, .pdf).

    Raises:
        UsageError: the report has no sweep, or the file cannot be written.
        CapabilityError: matplotlib is missing.
    """
    results = [result for result in report.results if result.sweep]
    if not results:
        raise UsageError("there is no token sweep to plot", "run the benchmark with --sweep")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CapabilityError(
            "plots need matplotlib, which is not installed",
            "run: pip install 'svit-deploy[plot]'",
        ) from error

    batches = list(dict.fromkeys(result.batch for result in results))
    figure = Figure(figsize=(6 * len(batches), 4), layout="constrained")
    panels = dict(zip(batches, figure.subplots(1, len(batches), squeeze=False)[0], strict=True))
    for batch, panel in panels.items():
        panel.set(title=f"batch {batch}", xlabel="keep ratio", ylabel="p50 latency, ms")
        panel.set_xlim(0, 1.02)
    ends = np.array([0.0, 1.0])
    for result in results:
        sweep, panel = result.sweep, panels[result.batch]
        assert sweep is not None
        (dots,) = panel.plot(
            [point.keep_ratio for point in sweep.points],
            [point.p50_ms for point in sweep.points],
            "o",
            label=result.label,
        )
        color = dots.get_color()
        panel.plot(ends, sweep.intercept_ms + sweep.slope_ms * ends, "--", color=color)
        if sweep.baseline_p50_ms is not None:
            panel.axhline(sweep.baseline_p50_ms, color="gray", label="baseline")
        if sweep.break_even_keep is not None:
            panel.axvline(sweep.break_even_keep, color=color, linestyle=":", label="break-even")
    for panel in panels.values():
        panel.set_ylim(bottom=0)
        panel.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:  # no such folder, or an unknown suffix
        raise UsageError(
            f"{path} cannot be drawn: {error}", "name a .png, .svg or .pdf file in a folder"
        ) from error
