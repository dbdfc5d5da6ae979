"""The page of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from svit_deploy.pages.charts import Chart, Point, stacked
from svit_deploy.pages.page import render_page
from svit_deploy.pages.sections import Charts, Lines, Section, Table

BINS = 40


def bench_page(report: Mapping[str, Any]) -> str:
    """The HTML of what `bench --raw --json` writes."""
    status = report["status"]
    labels = [target["label"] for target in report["targets"]]
    verdict = "; ".join(status["reasons"]) or fastest(report)
    title = f"Benchmark of {', '.join(labels)}"
    return render_page(title, not status["reasons"], verdict, bench_sections(report), report)


def fastest(report: Mapping[str, Any]) -> str:
    """The largest speed-up with its interval, or the only latency."""
    compared = [result for result in report["results"] if result["speedup"]]
    if not compared:
        one = report["results"][0]
        return f"{one['label']}: p50 {one['latency']['p50_ms']:.3g} ms at batch {one['batch']}"
    best = max(compared, key=lambda result: result["speedup"]["ratio"])
    baseline = report["targets"][0]["label"]
    return f"{best['label']}: {_speedup(best['speedup'])} of {baseline} at batch {best['batch']}"


def bench_sections(report: Mapping[str, Any]) -> list[Section]:
    """What a page shows of a benchmark."""
    sections: list[Section] = []
    batches = dict.fromkeys(result["batch"] for result in report["results"])
    for batch in batches:
        results = [result for result in report["results"] if result["batch"] == batch]
        sections.append(_table(results, batch))
        drawings = [_distribution(results)]
        if any(result["kept_of_block"] for result in results):
            drawings.append(_by_tokens(results))
        if any(result["sweep"] for result in results):
            drawings.append(_sweeps(results))
        sections.append(Charts(f"Latency at batch {batch}", drawings))
        if any(result["layers"] for result in results):
            sections.append(Charts(f"Where the time goes at batch {batch}", _layers(results)))
    sections.append(_targets(report["targets"]))
    notes = [f"measured {report['measured']}", *report["notes"]]
    for part in (*report["results"], *report["targets"]):
        notes += [f"{part['label']}: {note}" for note in part["notes"]]
    notes += [
        f"{result['label']}, batch {result['batch']}: unstable: {reason}"
        for result in report["results"]
        for reason in result["unstable"]
    ]
    sections.append(Lines("Notes", list(dict.fromkeys(notes))))
    return sections


def _table(results: Sequence[Mapping[str, Any]], batch: int) -> Table:
    headings = (
        *("latency, ms", "p50", "p90", "p99", "worst case", "images/s", "runs"),
        *("kept tokens", "speed-up, 95 %"),
    )
    rows = []
    for result in results:
        latency, kept, worst = result["latency"], result["kept"], result["worst_case"]
        rows.append(
            (
                result["label"],
                _ms(latency["p50_ms"]),
                _ms(latency["p90_ms"]),
                _ms(latency["p99_ms"]),
                _ms(worst and worst["latency"]["p50_ms"]),
                f"{result['throughput_images_per_s']:.4g}",
                str(latency["count"]),
                f"{kept['mean']:.3g} of {kept['tokens']}" if kept else "-",
                _speedups(result) if result["speedup"] else "baseline",
            )
        )
    return Table(f"Batch {batch}, interleaved", headings, rows)


def _speedups(result: Mapping[str, Any]) -> str:
    """From host to host, and of the time on a GPU where that is known."""
    gpu = (result["gpu"] or {}).get("speedup")
    return _speedup(result["speedup"]) + (f"; GPU time {_speedup(gpu)}" if gpu else "")


def _speedup(speedup: Mapping[str, Any]) -> str:
    return f"{speedup['ratio']:.2f}x ({speedup['low']:.2f} to {speedup['high']:.2f})"


def _distribution(results: Sequence[Mapping[str, Any]]) -> Markup:
    """How often each latency was seen, of each target on the same bins."""
    samples = [np.ravel(result["samples_ms"]) for result in results]
    together = np.concatenate(samples)
    low, high = np.percentile(together, (0, 99.5))
    edges = np.linspace(low, max(high, low * 1.001), BINS + 1)
    counts = [np.histogram(np.minimum(one, edges[-1]), edges)[0] for one in samples]
    highest = float(max(np.max(count) for count in counts))
    x = (float(edges[0]), float(edges[-1]))
    chart = Chart("how often each latency was seen", x, (0, highest), "ms", "runs")
    for result, count in zip(results, counts, strict=True):
        chart.bars(edges.tolist(), count.tolist(), [0] * BINS, result["label"])
    return chart.svg()


def _by_tokens(results: Sequence[Mapping[str, Any]]) -> Markup:
    clouds: list[tuple[str, list[Point]]] = []
    for result in results:
        if result["kept_of_block"]:
            blocks = zip(result["kept_of_block"], result["samples_ms"], strict=True)
            means = [(kept, float(np.mean(runs))) for kept, runs in blocks]
            points = [(kept, ms, f"{ms:.3g} ms, {kept:.3g} tokens") for kept, ms in means]
            clouds.append((result["label"], points))
    names = [result["label"] for result in results]
    x_label = "kept tokens per image, mean over gates"
    chart = _around(clouds, "latency by kept tokens", x_label, names)
    for label, points in clouds:
        chart.dots(points, label)
    return chart.svg()


def _sweeps(results: Sequence[Mapping[str, Any]]) -> Markup:
    lines: list[tuple[str, list[Point]]] = []
    for result in results:
        if result["sweep"]:
            found = [(point["keep_ratio"], point["p50_ms"]) for point in result["sweep"]["points"]]
            points = [(keep, ms, f"{ms:.3g} ms, keep ratio {keep:.3g}") for keep, ms in found]
            lines.append((result["label"], points))
    names = [result["label"] for result in results]
    chart = _around(lines, "latency by forced keep ratio", "keep ratio", names)
    for label, points in lines:
        chart.line(points, label)
    return chart.svg()


def _layers(results: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """What the profiled runs spent: a bar for each target, and one for each of its blocks."""
    told = {result["label"]: result["layers"]["times"] for result in results if result["layers"]}
    kinds: dict[str, float] = {}
    blocks: dict[tuple[str, str], dict[str, float]] = {}
    for one in (one for times in told.values() for one in times):
        kinds[one["kind"]] = kinds.get(one["kind"], 0.0) + one["ms"]
        for label in told:  # in the order of the blocks, all targets of one together
            blocks.setdefault((one["block"], label), {})
    for label, times in told.items():
        for one in times:
            blocks[one["block"], label][one["kind"]] = one["ms"]
    names = sorted(kinds, key=lambda kind: -kinds[kind])
    by_block = [
        (f"{block}, {label}", [spent.get(name, 0.0) for name in names])
        for (block, label), spent in blocks.items()
        if spent
    ]
    by_kind = [
        (label, [sum(one["ms"] for one in times if one["kind"] == name) for name in names])
        for label, times in told.items()
    ]
    return [
        stacked("by kind of operator", by_kind, names, "ms"),
        stacked("block by block", by_block, names, "ms"),
    ]


def _around(
    series: Sequence[tuple[str, Sequence[Point]]], title: str, x_label: str, names: Sequence[str]
) -> Chart:
    """An empty chart that has room for all points; latency begins at 0."""
    x = [point[0] for _, points in series for point in points]
    highest = max(point[1] for _, points in series for point in points)
    return Chart(title, (min(x), max(x)), (0, highest), x_label, "ms", names)


def _targets(targets: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            target["label"],
            _ms(target["cold_start"]["load_ms"]),
            _ms(target["cold_start"]["first_inference_ms"]),
            str(target["images"]),
            ", ".join(f"{name} {value}" for name, value in target["engine"].items() if value),
        )
        for target in targets
    ]
    return Table("Targets", ("", "load, ms", "first run, ms", "images", "engine"), rows)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.{2 if value < 100 else 1}f}"
