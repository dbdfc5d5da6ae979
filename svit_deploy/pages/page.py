"""A page: one file with its style, drawings, pictures and the report that it shows."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from svit_deploy.pages.sections import Lines, Section, Table


def render_page(
    title: str, passed: bool, verdict: str, sections: Sequence[Section], report: Mapping[str, Any]
) -> str:
    """The HTML of a page, which loads nothing, runs nothing and holds the report for download.

    Args:
        report: the record of a run as `--json` writes it; what is shown comes out of it.
    """
    environment = Environment(
        loader=PackageLoader("svit_deploy.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data"] = lambda content: base64.b64encode(content).decode()
    return environment.get_template("page.html").render(
        title=title,
        passed=passed,
        verdict=verdict,
        sections=[*sections, *about(report)],
        created=report.get("created_utc", ""),
        tool="{name} {version}".format(**report["tool"]),
        report=json.dumps(report, indent=2, allow_nan=False).encode(),
    )


def about(report: Mapping[str, Any]) -> list[Section]:
    """What ran where, of any report."""
    command = " ".join(report.get("command", ()))
    facts = list(flat(report.get("environment", {})))
    sections: list[Section] = [Lines("Command", [command])] if command else []
    if facts:
        sections.append(Table("Environment", ("", ""), facts))
    return sections


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Names and values of a record, nested names joined by blanks; what is absent is left out."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        name = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            rows += flat(value, f"{name} ")
        elif value not in (None, "", [], ()):
            listed = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            rows.append((name, listed))
    return rows
