"""A choice as it is printed: a table, sentences and figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any

from svit_deploy.forms import Part, Printed
from svit_deploy.pages.tune import by_speed, headings_of, quality_of, rows_of, verdict

COLUMNS = (
    *("candidate", "threads", "batch", "p50_ms", "p90_ms", "p99_ms", "ms_per_image"),
    *("quality", "accuracy_drop", "decisions_turned", "pareto", "chosen"),
)


def printed(report: Mapping[str, Any]) -> Printed:
    """What `--format` prints of `TuneReport.to_dict`; the CSV has the figures in full."""
    table = Part("", headings_of(report), rows_of(report), list(_sentences(report)))
    figures = [[point[name] for name in COLUMNS] for point in by_speed(report)]
    return Printed([table], COLUMNS, figures)


def _sentences(report: Mapping[str, Any]) -> Iterator[str]:
    yield "* no other is as fast and as good (Pareto front)"
    yield quality_of(report)
    for one in report["candidates"]:
        if one["failed"] is not None:
            yield f"dropped: {one['name']}: {one['failed']}"
    for one in takewhile(lambda one: not one["chosen"], by_speed(report)):
        if one["refused"] is not None:
            yield f"not chosen: {one['label']}, batch {one['batch']}: {one['refused']}"
    for one in report["left_out"]:
        yield f"left out: {one['what']}: {one['why']}"
    yield f"{'FAILED' if report['winner'] is None else 'chosen'}: {verdict(report)}"
