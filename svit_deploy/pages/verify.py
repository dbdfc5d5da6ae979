"""The page of a verification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from svit_deploy.pages.charts import Chart
from svit_deploy.pages.page import render_page
from svit_deploy.pages.sections import Charts, Gallery, Lines, Picture, Section, Table


def verify_page(report: Mapping[str, Any], maps: Sequence[Picture] = ()) -> str:
    """The HTML of what `verify --json` writes.

    Args:
        maps: token maps of some images.
    """
    status = report["status"]
    passed = status["verdict"] == "pass"
    name = report["inputs"][0]["name"]
    verdict = "PASS" if passed else f"FAIL: {status['reasons'][0]}"
    if passed:
        verdict += f", against the {report['settings']['reference']}"
    return render_page(
        f"Verification of {name}", passed, verdict, verify_sections(report, maps), report
    )


def verify_sections(
    report: Mapping[str, Any], maps: Sequence[Picture] = (), of: str = ""
) -> list[Section]:
    """What a page shows of a verification.

    Args:
        of: what stands in front of each heading, of a page that shows several.
    """
    results = report["results"]
    checks, gates = results["checks"], results["gates"]
    sections: list[Section] = []
    if results["assumed"]:
        lines = [f"{name} = {value}" for name, value in results["assumed"].items()]
        sections.append(Lines(f"{of}Assumptions", lines))
    bad = frozenset(i for i, check in enumerate(checks) if not check["passed"])
    rows = [("ok" if c["passed"] else "FAIL", c["name"], c["detail"]) for c in checks]
    sections.append(Table(f"{of}Checks", ("", "check", "seen"), rows, bad, words=2))
    if gates:
        sections.append(_gates(gates, of))
        drawings = [_margins(gate) for gate in gates if gate["margins"]]
        if drawings:
            sections.append(Charts(f"{of}Margins of the reference, gate by gate", drawings))
    if maps:
        sections.append(Gallery(f"{of}Tokens kept", maps))
    if results["stages"]:
        sections.append(_stages(results["stages"], of))
    if results["notes"]:
        sections.append(Lines(f"{of}Notes", results["notes"]))
    return sections


def _gates(gates: Sequence[Mapping[str, Any]], of: str) -> Table:
    headings = (
        *("gate", "block", "agreement", "near ties", "faults"),
        *("keep ratio", "reference's", "target", "drift of margins"),
    )
    rows = [
        (
            str(gate["gate"]),
            str(gate["block"]),
            f"{gate['agreement']:.4%}",
            str(gate["coin_toss_flips"]),
            str(gate["fault_flips"]),
            f"{gate['keep_ratio']:.4f}",
            f"{gate['reference_keep_ratio']:.4f}",
            _number(gate["target_keep_ratio"], ".3f"),
            _number(gate["margin_drift"], ".2g"),
        )
        for gate in gates
    ]
    bad = frozenset(i for i, gate in enumerate(gates) if gate["fault_flips"])
    return Table(f"{of}Gates", headings, rows, bad)


def _margins(gate: Mapping[str, Any]) -> Markup:
    margins = gate["margins"]
    edges, kept, pruned = margins["edges"], margins["kept"], margins["pruned"]
    highest = max(map(sum, zip(kept, pruned, strict=True)))
    chart = Chart(
        f"gate {gate['gate']}, block {gate['block']}",
        (edges[0], edges[-1]),
        (0, highest),
        "margin",
        "decisions",
    )
    chart.bars(edges, pruned, [0] * len(pruned), "pruned")
    chart.bars(edges, kept, pruned, "kept")
    chart.mark(margins["threshold"], f"threshold {margins['threshold']:g}")
    return chart.svg()


def _stages(stages: Sequence[Mapping[str, Any]], of: str) -> Table:
    rows, bad = [], set()
    for i, stage in enumerate(stages):
        error, limit = stage["error"], stage["limit"]
        if error is None or error > limit:
            bad.add(i)
        share = "-" if error is None else f"{error / limit:.0%}"
        rows.append((stage["name"], _number(error, ".2g"), f"{limit:.2g}", share))
    headings = ("stage", "largest error", "limit", "of the limit")
    return Table(f"{of}Stages, each by itself", headings, rows, frozenset(bad))


def _number(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)
