"""The terminal form of a benchmark's report."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from svit_deploy.bench.clocks import in_words
from svit_deploy.bench.report import MEASURED, BenchReport, Sweep, TargetResult
from svit_deploy.bench.stats import RatioInterval, percentile_floor


def render(report: BenchReport, console: Console) -> None:
    """Prints the report; fits 80 columns and a console that has ASCII only."""
    for batch in dict.fromkeys(result.batch for result in report.results):
        results = [result for result in report.results if result.batch == batch]
        count = min(result.latency.count for result in results)
        quick = ", quick: not a figure to publish" if report.settings.get("quick") else ""
        _say(console, f"batch {batch}, {count} runs each, interleaved{quick}", style="italic")
        console.print(_latency_table(results))
        if left := max(result.rounds_left for result in results):
            rounds = results[0].rounds
            _say(console, f"--max-time left out {left} of about {rounds + left} rounds")
        if any(result.gpu for result in results):
            _say(console, "on the GPU; transfers and enqueueing are p50", style="italic")
            console.print(_gpu_table(results))
        for result in results:
            for line in _lines(result, results[0].label):
                _say(console, line)
        if any(result.latency.p99_ms is None for result in results):
            _say(console, f"p99 n/a: it needs {percentile_floor(99)} runs")
        for result in results:
            if result.sweep:
                _say(console, f"{result.label}: latency by keep ratio", style="italic")
                console.print(_sweep_table(result.sweep))
                _say(console, _fit_in_words(result.sweep))
    for target in report.targets:
        cold = target.cold_start
        start = f"{_ms(cold.load_ms)} ms load + {_ms(cold.first_inference_ms)} ms first run"
        _say(console, f"{target.label}: cold start {start}")
        for note in target.notes:
            _say(console, f"{target.label}: note: {note}")
    for line in in_words(report.gpu) if report.gpu else ():
        _say(console, line)
    for note in report.notes:
        _say(console, f"note: {note}")
    if report.peak_rss_mib is not None:
        _say(console, f"peak memory of the process: {report.peak_rss_mib:.0f} MiB")
    _say(console, f"measured {MEASURED}")
    for failure in report.failures:
        _say(console, f"FAILED: {failure}")


def _latency_table(results: list[TargetResult]) -> Table:
    table = Table()
    table.add_column("latency, ms", overflow="fold")
    for header in ("p50", "p90", "p99", "worst case", "img/s", "kept tokens"):
        table.add_column(header, justify="right", overflow="fold")
    for result in results:
        latency, kept, rate = result.latency, result.kept, result.throughput_images_per_s
        table.add_row(
            Text(result.label),
            _ms(latency.p50_ms),
            _ms(latency.p90_ms),
            _ms(latency.p99_ms),
            _ms(result.worst_case.latency.p50_ms) if result.worst_case else "-",
            f"{rate:.{1 if rate < 100 else 0}f}",
            f"{kept.mean:.3g} ({kept.min:.3g}-{kept.max:.3g}) of {kept.tokens}" if kept else "-",
        )
    return table


def _gpu_table(results: list[TargetResult]) -> Table:
    table = Table()
    table.add_column("time, ms", overflow="fold")
    for header in ("p50", "p99", "to GPU", "to host", "enqueue", "graph", "profile"):
        table.add_column(header, justify="right", overflow="fold")
    for result in results:
        if times := result.gpu:
            table.add_row(
                Text(result.label),
                _ms(times.gpu.p50_ms),
                _ms(times.gpu.p99_ms),
                _ms(times.h2d_p50_ms),
                _ms(times.d2h_p50_ms),
                f"{_ms(times.enqueue_p50_ms)} ({times.enqueue_share:.0%})",
                "yes" if times.graph else "no",
                f"{times.profile}: {'x'.join(map(str, times.shape))}",
            )
    return table


def _lines(result: TargetResult, baseline: str) -> list[str]:
    """What the table has no room for, one sentence a line."""
    lines = []
    if result.speedup:
        lines.append(f"speed-up over {baseline}: {_speedup(result.speedup)}")
    if result.gpu and result.gpu.speedup:
        lines.append(f"speed-up of GPU time over {baseline}: {_speedup(result.gpu.speedup)}")
    if flight := result.in_flight:
        rate = f"{flight.images_per_s:.{1 if flight.images_per_s < 100 else 0}f} img/s"
        lines.append(
            f"{flight.runs_in_flight} runs in flight: {rate}, {_ms(flight.device_ms)} ms of the "
            "device each; the table is of one at a time, which overlaps with nothing"
        )
    if result.worst_case and result.worst_case.speedup:
        lines.append(f"speed-up in the worst case: {_speedup(result.worst_case.speedup)}")
    if result.terciles:
        groups = ", ".join(
            f"{_ms(third.p50_ms)} ms at {third.kept_min:.3g}-{third.kept_max:.3g} tokens"
            for third in result.terciles
        )
        lines.append(f"p50 by content: {groups}")
    lines += [f"unstable: {reason}" for reason in result.unstable]
    lines += [f"note: {note}" for note in result.notes]
    return [f"{result.label}: {line}" for line in lines]


def _sweep_table(sweep: Sweep) -> Table:
    table = Table()
    for header in ("asked for", "kept", "p50, ms", "fit, ms"):
        table.add_column(header, justify="right")
    for point in sweep.points:
        fit_ms = sweep.intercept_ms + sweep.slope_ms * point.keep_ratio
        table.add_row(
            f"{point.requested:.0%}", f"{point.keep_ratio:.0%}", _ms(point.p50_ms), _ms(fit_ms)
        )
    return table


def _fit_in_words(sweep: Sweep) -> str:
    text = f"p50 = {_ms(sweep.intercept_ms)} + {_ms(sweep.slope_ms)} x keep ratio"
    if sweep.break_even_keep is not None:
        return f"{text}; break-even with the baseline: keep {sweep.break_even_keep:.0%}"
    if sweep.baseline_p50_ms is not None:
        return f"{text}; no break-even with the baseline ({_ms(sweep.baseline_p50_ms)} ms)"
    return text


def _speedup(interval: RatioInterval) -> str:
    text = f"{interval.ratio:.2f}x [95 % interval {interval.low:.2f}-{interval.high:.2f}]"
    return f"{text}, {interval.verdict}"


def _ms(value: float | None) -> str:
    if value is None:
        return "n/a"
    decimals = 3 if abs(value) < 1 else 2 if abs(value) < 100 else 0
    return f"{value:.{decimals}f}"


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, markup=False, highlight=False, style=style)
