"""An evaluation as it is printed: a table, sentences and figures."""

from __future__ import annotations

from dataclasses import dataclass

from svit_deploy.evaluate.report import Evaluation
from svit_deploy.forms import Part, Printed

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


def printed(evaluation: Evaluation) -> Printed:
    """What `--format` prints; the CSV has the figures in full, shares from 0 to 1."""
    found = rows(evaluation)
    cells = [(row.name, row.text, row.interval) for row in found]
    part = Part(headings=HEADINGS, rows=cells, lines=sentences(evaluation))
    name = evaluation.bundle.name
    figures = [(name, row.name, row.value, row.low, row.high) for row in found]
    return Printed([part], ("bundle", "measure", "value", "low", "high"), figures)


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
