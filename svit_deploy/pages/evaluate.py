"""The page of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from svit_deploy.pages.charts import Chart
from svit_deploy.pages.page import render_page
from svit_deploy.pages.sections import Charts, Lines, Section, Table


def evaluate_page(report: Mapping[str, Any]) -> str:
    """The HTML of what `evaluate --json` writes."""
    results = report["results"]
    broken = results["not_finite_images"]
    key, first = next(iter(results["measures"].items()))
    verdict = f"{_name(key)} {first['value']:.2%} on {results['images']} images"
    if broken:
        verdict = f"NaN or infinity in {broken} images; {verdict}"
    title = f"Evaluation of {report['inputs'][0]['name']}"
    return render_page(title, not broken, verdict, evaluate_sections(report), report)


def evaluate_sections(report: Mapping[str, Any]) -> list[Section]:
    """What a page shows of an evaluation."""
    results = report["results"]
    measures = [
        (_name(key), f"{one['value']:.2%}", _percent(one["low"]), _percent(one["high"]))
        for key, one in results["measures"].items()
    ]
    sections: list[Section] = [Table("Measures", ("", "value", "95 % from", "to"), measures)]
    if gates := results["gates"]:
        rows = [
            (str(g["gate"]), str(g["block"]), f"{g['keep_ratio']:.4f}", f"{g['kept_tokens']:.1f}")
            for g in gates
        ]
        headings = ("gate", "block", "keep ratio", "kept tokens")
        sections.append(Table("What the gates keep", headings, rows))
        blocks = [gate["block"] for gate in gates]
        x = (min(blocks) - 0.5, max(blocks) + 0.5)
        chart = Chart("kept tokens by block", x, (0, results["tokens"]), "block", "tokens")
        points = [
            (g["block"], g["kept_tokens"], f"{g['kept_tokens']:.4g} of {results['tokens']:.4g}")
            for g in gates
        ]
        chart.line(points, "kept tokens")
        sections.append(Charts("Tokens", [chart.svg()]))
    speed = [
        ("images", str(results["images"])),
        ("pictures skipped", str(len(results["skipped"]))),
        ("images/s", f"{results['images_per_s']:.1f}"),
        ("images/s while the model runs", f"{results['engine_images_per_s']:.1f}"),
    ]
    sections.append(Table("Speed", ("", ""), speed))
    lines = [f"labels: {results['labels']}", *results["notes"]]
    lines += [f"skipped {one['name']}: {one['reason']}" for one in results["skipped"]]
    sections.append(Lines("Notes", lines))
    return sections


def _name(key: str) -> str:
    return key.replace("_", " ")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
