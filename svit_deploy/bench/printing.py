"""A benchmark as it is printed: tables, sentences and figures."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console

from svit_deploy import forms
from svit_deploy.bench.clocks import in_words
from svit_deploy.bench.gpu import GpuTimes
from svit_deploy.bench.layers import layer_parts
from svit_deploy.bench.report import MEASURED, BenchReport, Sweep, TargetResult
from svit_deploy.bench.stats import RatioInterval, percentile_floor
from svit_deploy.forms import Part, Printed

LATENCY = ("latency, ms", "p50", "p90", "p99", "worst case", "img/s", "kept tokens")
GPU = ("time, ms", "p50", "p99", "to GPU", "to host", "enqueue", "graph", "profile")
SWEEP = ("asked for", "kept", "p50, ms", "fit, ms")


COLUMNS = ("target", "batch", "measure", "value", "low", "high")


def render(report: BenchReport, console: Console) -> None:
    """Prints the report; fits 80 columns and a console that has ASCII only."""
    forms.render(printed(report), forms.TABLE, console)


def printed(report: BenchReport) -> Printed:
    """What `--format` prints; the CSV has the figures in full."""
    parts: list[Part] = []
    for batch in dict.fromkeys(result.batch for result in report.results):
        results = [result for result in report.results if result.batch == batch]
        parts += _of_batch(results, quick=bool(report.settings.get("quick")))
    parts.append(Part(lines=_about(report)))
    figures = [
        (result.label, result.batch, *figure)
        for result in report.results
        for figure in _figures(result)
        if figure[1] is not None
    ]
    return Printed(parts, COLUMNS, figures)


def _of_batch(results: list[TargetResult], *, quick: bool) -> Iterator[Part]:
    """What is said of one batch size."""
    first = results[0]
    count = min(result.latency.count for result in results)
    caveat = ", quick: not a figure to publish" if quick else ""
    left = max(result.rounds_left for result in results)
    of = f"--max-time left out {left} of about {first.rounds + left} rounds"
    yield Part(
        f"batch {first.batch}, {count} runs each, interleaved{caveat}",
        LATENCY,
        [_latency_row(result) for result in results],
        [of] if left else [],
    )
    if any(result.gpu for result in results):
        caption = "on the GPU; transfers and enqueueing are p50"
        yield Part(caption, GPU, [_gpu_row(one.label, one.gpu) for one in results if one.gpu])
    lines = [line for result in results for line in _lines(result, first.label)]
    if any(result.latency.p99_ms is None for result in results):
        lines.append(f"p99 n/a: it needs {percentile_floor(99)} runs")
    yield Part(lines=lines)
    yield from layer_parts(results)
    for result in results:
        if sweep := result.sweep:
            caption = f"{result.label}: latency by keep ratio"
            yield Part(caption, SWEEP, _sweep_rows(sweep), [_fit_in_words(sweep)])


def _about(report: BenchReport) -> list[str]:
    """What is said of the targets and of all of the run."""
    lines = []
    for target in report.targets:
        cold = target.cold_start
        start = f"{_ms(cold.load_ms)} ms load + {_ms(cold.first_inference_ms)} ms first run"
        lines.append(f"{target.label}: cold start {start}")
        lines += [f"{target.label}: note: {note}" for note in target.notes]
    lines += in_words(report.gpu) if report.gpu else ()
    lines += [f"note: {note}" for note in report.notes]
    if report.peak_rss_mib is not None:
        lines.append(f"peak memory of the process: {report.peak_rss_mib:.0f} MiB")
    lines.append(f"measured {MEASURED}")
    return lines + [f"FAILED: {failure}" for failure in report.failures]


def _figures(
    result: TargetResult,
) -> Iterator[tuple[str, float | None, float | None, float | None]]:
    """Name, value and interval of what was measured of one target; None where it was not."""

    def plain(name: str, value: float | None) -> tuple[str, float | None, None, None]:
        return name, value, None, None

    def over(name: str, found: RatioInterval | None) -> Iterator[tuple[str, float, float, float]]:
        if found is not None:
            yield name, found.ratio, found.low, found.high

    latency = result.latency
    yield plain("runs", latency.count)
    for name in ("mean_ms", "p50_ms", "p90_ms", "p99_ms", "min_ms", "max_ms"):
        yield plain(name, getattr(latency, name))
    yield plain("images_per_s", result.throughput_images_per_s)
    yield from over("speedup", result.speedup)
    if worst := result.worst_case:
        yield plain("worst_case_p50_ms", worst.latency.p50_ms)
        yield from over("worst_case_speedup", worst.speedup)
    if kept := result.kept:
        for name in ("tokens", "min", "mean", "max"):
            yield plain("tokens" if name == "tokens" else f"kept_{name}", getattr(kept, name))
        yield plain("keep_ratio", kept.keep_ratio)
    if times := result.gpu:
        yield plain("gpu_p50_ms", times.gpu.p50_ms)
        for name in ("h2d_p50_ms", "d2h_p50_ms", "enqueue_p50_ms"):
            yield plain(name, getattr(times, name))
        yield from over("gpu_speedup", times.speedup)
    if flight := result.in_flight:
        yield plain("in_flight_images_per_s", flight.images_per_s)
    for kind, ms in result.layers.by_kind().items() if result.layers else ():
        yield plain(f"{kind}, ms", ms)
    for point in result.sweep.points if result.sweep else ():
        yield plain(f"p50_ms_at_keep_ratio_{point.keep_ratio:.4g}", point.p50_ms)


def _latency_row(result: TargetResult) -> tuple[str, ...]:
    latency, kept, rate = result.latency, result.kept, result.throughput_images_per_s
    return (
        result.label,
        _ms(latency.p50_ms),
        _ms(latency.p90_ms),
        _ms(latency.p99_ms),
        _ms(result.worst_case.latency.p50_ms) if result.worst_case else "-",
        f"{rate:.{1 if rate < 100 else 0}f}",
        f"{kept.mean:.3g} ({kept.min:.3g}-{kept.max:.3g}) of {kept.tokens}" if kept else "-",
    )


def _gpu_row(label: str, times: GpuTimes) -> tuple[str, ...]:
    return (
        label,
        _ms(times.gpu.p50_ms),
        _ms(times.gpu.p99_ms),
        _ms(times.h2d_p50_ms),
        _ms(times.d2h_p50_ms),
        f"{_ms(times.enqueue_p50_ms)} ({times.enqueue_share:.0%})",
        "yes" if times.graph else "no",
        _shape(times),
    )


def _shape(times: GpuTimes) -> str:
    shape = "x".join(map(str, times.shape))
    return shape if times.profile is None else f"{times.profile}: {shape}"


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


def _sweep_rows(sweep: Sweep) -> list[tuple[str, ...]]:
    return [
        (
            f"{point.requested:.0%}",
            f"{point.keep_ratio:.0%}",
            _ms(point.p50_ms),
            _ms(sweep.intercept_ms + sweep.slope_ms * point.keep_ratio),
        )
        for point in sweep.points
    ]


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
