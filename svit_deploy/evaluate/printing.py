"""An evaluation as a table for the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from svit_deploy.evaluate.report import Evaluation

TABLE, MARKDOWN, CSV, JSON = FORMATS = ("table", "markdown", "csv", "json")
HEADINGS = ("measure", "value", "95 % interval")


@dataclass(frozen=True)
class Row:
    """One line: a name, a figure with its interval, and both for the eye."""

    name: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    interval: str = ""


def rows(evaluation: Evaluation) -> list[Row]:
    """What is printed, in order."""
    kept, found = evaluation.kept, []
    for measure in evaluation.measures:
        text = f"{measure.value:{measure.style}}"
        limits = measure.low, measure.high, measure.interval
        found.append(Row(measure.label, measure.value, text, *limits))
    for gate in kept.gates:
        name = f"keep ratio of gate {gate.gate}, block {gate.block}"
        found.append(Row(name, gate.keep_ratio, f"{gate.keep_ratio:.3f}"))
    if kept.kept_tokens is not None and kept.tokens is not None:
        of = f"{kept.kept_tokens:.1f} of {kept.tokens:.4g}"
        found.append(Row("mean kept tokens", kept.kept_tokens, of))
    if evaluation.bundle.budgets:
        found.append(_count("images beyond a budget", kept.overflowing))
    found.append(_count("images", evaluation.images))
    found.append(_count("pictures skipped", len(evaluation.skipped)))
    for name, rate in (
        ("images/s", evaluation.images_per_s),
        ("images/s while the model runs", evaluation.engine_images_per_s),
    ):
        found.append(Row(name, rate, f"{rate:.1f}"))
    return found


def _count(name: str, count: int) -> Row:
    return Row(name, count, str(count))


def render(evaluation: Evaluation, form: str, console: Console) -> None:
    """Prints one of the forms; JSON is the report itself."""
    if form == TABLE:
        _table(evaluation, console)
    elif form == MARKDOWN:
        _say(console, to_markdown(evaluation))
    elif form == CSV:
        _say(console, to_csv(evaluation))


def to_markdown(evaluation: Evaluation) -> str:
    lines = [HEADINGS, ("---", "---:", "---:")]
    lines += [(row.name, row.text, row.interval) for row in rows(evaluation)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *sentences(evaluation)])


def to_csv(evaluation: Evaluation) -> str:
    """Figures in full: shares from 0 to 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("bundle", "measure", "value", "low", "high"))
    for row in rows(evaluation):
        writer.writerow((evaluation.bundle.name, row.name, row.value, row.low, row.high))
    return text.getvalue().rstrip("\n")


def _table(evaluation: Evaluation, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column(HEADINGS[0], overflow="fold")
    for heading in HEADINGS[1:]:
        table.add_column(heading, justify="right", overflow="fold")
    for row in rows(evaluation):
        table.add_row(row.name, row.text, row.interval)
    console.print(table)
    for line in sentences(evaluation):
        _say(console, line)


def sentences(evaluation: Evaluation) -> list[str]:
    """What a table has no room for."""
    engine = evaluation.engine
    runtime = f"{engine['runtime']} {engine.get('provider', '')}".rstrip()
    lines = [f"{evaluation.bundle.name}: {evaluation.told}; batch {evaluation.batch}, {runtime}"]
    if evaluation.recorded:
        count, judgement = evaluation.recorded
        of = "; ".join([*judgement.summary, *judgement.lines])
        lines.append(f"the {count} of these images that the export recorded: {of}")
    if evaluation.broken:
        lines.append(f"NaN or infinity in {evaluation.broken} images, which count as wrong")
    return lines + [f"note: {note}" for note in evaluation.notes]


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
