"""Results as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mutation.cases import ALL
from mutation.run import Record

HEADING = """\
| | seeded | faults | caught | located | survived | equivalent | refused |
|---|---|---|---|---|---|---|---|"""


def render(records: Sequence[Record], made: dict[str, Any]) -> str:
    """All tables."""
    mutants = [record for record in records if record.kind != "control"]
    controls = [record for record in records if record.kind == "control"]
    versions = ", ".join(f"{k} {v}" for k, v in sorted(made["versions"].items()))
    parts = [
        f"code {made['code']}, seed {made['seed']}, against the {made['reference']}\n"
        f"{made['processor']}; {versions}",
        of_mutants(mutants),
        by_system(mutants),
        of_controls(controls),
        survivors(mutants),
        not_located(mutants),
        equivalents(mutants),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _line(label: str, records: Sequence[Record]) -> str:
    faults = [record for record in records if not record.equivalent]
    refused = sum(not record.passed for record in records if record.equivalent)
    caught = [record for record in faults if not record.passed]
    located = sum(record.located for record in caught)
    share = f" ({len(caught) / len(faults):.1%})" if faults else ""
    return (
        f"| {label} | {len(records)} | {len(faults)} | {len(caught)}{share} | {located} "
        f"| {len(faults) - len(caught)} | {len(records) - len(faults)} | {refused} |"
    )


def of_mutants(records: Sequence[Record]) -> str:
    lines = ["Faults", HEADING]
    for precision in ALL:
        for kind in ("designed", "drawn"):
            found = [r for r in records if (r.precision, r.kind) == (precision, kind)]
            if found:
                lines.append(_line(f"{precision}, {kind}", found))
    return "\n".join([*lines, _line("all", records)])


def by_system(records: Sequence[Record]) -> str:
    names = dict.fromkeys(record.case for record in records)
    lines = [_line(name, [r for r in records if r.case == name]) for name in names]
    return "\n".join(["By system", HEADING, *lines])


def of_controls(records: Sequence[Record]) -> str:
    lines = ["Unbroken bundles", "| | verified | refused |", "|---|---|---|"]
    for precision in ALL:
        found = [r for r in records if r.precision == precision]
        refused = [r for r in found if not r.passed]
        lines.append(f"| {precision} | {len(found)} | {len(refused)} |")
    lines += [f"  {r.id}: {r.words}" for r in records if not r.passed]
    return "\n".join(lines)


def _effect(record: Record) -> str:
    if record.effect is None:
        return "told only"
    decisions = record.effect["decisions"]
    more = f", {decisions} decisions" if decisions else ""
    return f"{record.effect['times']:.3g}x rounding in {record.effect['what']}{more}"


def survivors(records: Sequence[Record]) -> str:
    """Faults that verify accepted, the largest effect first."""
    found = [r for r in records if r.passed and not r.equivalent]
    found.sort(key=lambda r: -(r.effect or {"times": 0})["times"])
    lines = [f"  {r.id} [{r.fault}]: {_effect(r)}" for r in found]
    return "\n".join([f"Survived: {len(found)}", *lines])


def not_located(records: Sequence[Record]) -> str:
    found = [r for r in records if not r.passed and not r.equivalent and not r.located]
    lines = [f"  {r.id} [{r.fault}]: in {', '.join(r.places)}; {r.words}" for r in found]
    return "\n".join([f"Caught and not located: {len(found)}", *lines])


def equivalents(records: Sequence[Record]) -> str:
    found = [r for r in records if r.equivalent]
    refused = sum(not r.passed for r in found)
    lines = [
        f"  {r.id} [{r.fault}]: {_effect(r)}; {'passed' if r.passed else 'refused'}" for r in found
    ]
    return "\n".join([f"Equivalent: {len(found)}, of which refused {refused}", *lines])
