"""The page of a choice made by measurement, and what it shares with the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from svit_deploy.pages.charts import Chart, Point
from svit_deploy.pages.page import render_page
from svit_deploy.pages.sections import Charts, Lines, Section, Table

FRONT, OTHERS, CHOSEN = "Pareto front", "others", "chosen"


def tune_page(report: Mapping[str, Any]) -> str:
    """The HTML of what `tune --json` writes."""
    title = f"Candidates of {report['inputs'][0]['name']}"
    passed = not report["status"]["reasons"]
    return render_page(title, passed, verdict(report), tune_sections(report), report)


def tune_sections(report: Mapping[str, Any]) -> list[Section]:
    """What a page shows of a choice."""
    points = by_speed(report)
    chosen = [i for i, point in enumerate(points) if point["chosen"]]
    sections: list[Section] = []
    if report["winner"]:
        sections.append(Lines("To do the same again", report["winner"]["commands"]))
    sections.append(Charts("Latency and quality", [_drawing(report, points)]))
    rows = [
        (*row, "chosen" if i in chosen else point["refused"] or "")
        for i, (row, point) in enumerate(zip(rows_of(report), points, strict=True))
    ]
    sections.append(Table("Measured, interleaved", (*headings_of(report), ""), rows))
    dropped = [(c["name"], c["failed"]) for c in report["candidates"] if c["failed"] is not None]
    if dropped:
        sections.append(Table("Dropped", ("candidate", "why"), dropped, words=2))
    if left_out := [(one["what"], one["why"]) for one in report["left_out"]]:
        sections.append(Table("Left out", ("what", "why"), left_out, words=2))
    exports = [(one["name"], one["export"]) for one in report["candidates"]]
    sections.append(Table("Exports", ("candidate", "command"), exports, words=2))
    sections.append(Lines("Quality", [quality_of(report)]))
    return sections


def verdict(report: Mapping[str, Any]) -> str:
    """What was chosen, or why nothing was."""
    if report["winner"] is None:
        return "; ".join(report["status"]["reasons"])
    (point,) = (point for point in report["points"] if point["chosen"])
    said = f"{report['winner']['point']}: p50 {_ms(point['p50_ms'])} ms"
    if point["speedup"]:
        said += f", {_speedup(point['speedup'])} of {report['base']}"
    return f"{said}, {_name(report)} {point['quality']:.2%}"


def quality_of(report: Mapping[str, Any]) -> str:
    """What quality is, and what the base has of it."""
    quality = report["quality"]
    return (
        f"{_name(report)} is told by {quality['told_by']}; {report['base']} has "
        f"{quality['base']:.2%} on {quality['images']} images"
    )


def by_speed(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The points, the fastest first."""
    return sorted(report["points"], key=lambda point: point["ms_per_image"])


def headings_of(report: Mapping[str, Any]) -> tuple[str, ...]:
    batch = ("batch", "ms/image") if _batches(report) else ()
    return ("candidate", *batch, "p50, ms", "speed-up, 95 %", _name(report), "lost", "turned", "")


def rows_of(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each point, the fastest first; the last column marks the front."""
    return [
        (
            point["label"],
            *((str(point["batch"]), _ms(point["ms_per_image"])) if _batches(report) else ()),
            _ms(point["p50_ms"]),
            _speedup(point["speedup"]) if point["speedup"] else "base",
            f"{point['quality']:.2%}",
            "-" if point["accuracy_drop"] is None else f"{point['accuracy_drop']:.2%}",
            turned(point),
            "*" if point["pareto"] else "",
        )
        for point in by_speed(report)
    ]


def _batches(report: Mapping[str, Any]) -> bool:
    """Whether there are several batch sizes to tell apart."""
    return len(report["settings"]["batches"]) > 1


def turned(point: Mapping[str, Any]) -> str:
    """The share of decisions that are not the reference's."""
    if not point["decisions"]:
        return "-"
    share = point["decisions_turned"] / point["decisions"]
    return f"{share:.3%}" if share else "0"


def _drawing(report: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> Markup:
    """Quality over latency: the front as a line, the others as dots."""
    lowest = min(100 * point["quality"] for point in points)
    highest = max(100 * point["quality"] for point in points)
    slowest = max(point["ms_per_image"] for point in points)
    chart = Chart(
        f"{_name(report)} over ms per image",
        (0, slowest),
        (lowest, highest),
        "p50 of a run, ms per image",
        f"{_name(report)}, %",
        (FRONT, OTHERS, CHOSEN),
    )
    chart.dots([_dot(point) for point in points if not point["pareto"]], OTHERS)
    chart.line([_dot(point) for point in points if point["pareto"]], FRONT)
    chart.dots([_dot(point) for point in points if point["chosen"]], CHOSEN)
    return chart.svg()


def _dot(point: Mapping[str, Any]) -> Point:
    ms, quality = point["ms_per_image"], 100 * point["quality"]
    where = f"{point['label']}, batch {point['batch']}"
    return ms, quality, f"{where}: {_ms(ms)} ms per image, {quality:.2f} %"


def _name(report: Mapping[str, Any]) -> str:
    name: str = report["quality"]["measure"]
    return name.removeprefix("top1_").replace("_", " ")


def _speedup(speedup: Mapping[str, Any]) -> str:
    return f"{speedup['ratio']:.2f}x ({speedup['low']:.2f}-{speedup['high']:.2f})"


def _ms(value: float) -> str:
    return f"{value:.{3 if value < 1 else 2 if value < 100 else 1}f}"
