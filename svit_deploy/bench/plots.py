"""The picture of a benchmark: latency over the keep ratio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from svit_deploy.bench.report import BenchReport
from svit_deploy.errors import CapabilityError, UsageError
from svit_deploy.io.files import check_writable, write_file


def check_plot(path: Path) -> None:
    """Refuses a plot that could not be drawn; call it before the measurement.

    Raises:
        CapabilityError: matplotlib is missing.
        UsageError: an unknown suffix, or a place that cannot be written.
    """
    formats = _figure_class()().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in formats:
        raise UsageError(f"{path} is no kind of picture", "name a .png, .svg or .pdf file")
    check_writable(path, "--sweep-tokens")


def plot_sweep(report: BenchReport, path: Path) -> None:
    """Draws every sweep of the report, one panel for each batch size.

    Args:
        path: the picture to write; its suffix names the format (.png, .svg, .pdf).

    Raises:
        UsageError: the report has no sweep, or `check_plot` refuses.
        CapabilityError: matplotlib is missing.
        ExportError: the disk is full or not writable.
    """
    results = [result for result in report.results if result.sweep]
    if not results:
        raise UsageError("there is no token sweep to plot", "bench a bundle in token mode dynamic")
    check_plot(path)
    batches = list(dict.fromkeys(result.batch for result in results))
    figure = _figure_class()(figsize=(6 * len(batches), 4), layout="constrained")
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
    with write_file(path, "--sweep-tokens") as part:
        figure.savefig(part)


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CapabilityError(
            "plots need matplotlib, which is not installed",
            "run: pip install 'svit-deploy[plot]'",
        ) from error
    return Figure
