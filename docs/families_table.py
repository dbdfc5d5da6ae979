"""Writes the table of families in methods.md from the families and presets themselves.

python docs/families_table.py
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from svit_deploy.inspection.catalogue import make_catalogue
from svit_deploy.methods.families import FAMILIES

PAGE = Path(__file__).parent / "methods.md"
BEGIN, END = "<!-- docs/families_table.py writes this table -->\n", "<!-- end of the table -->\n"
HEADINGS = (
    "family",
    "presets",
    "keys",
    "token modes",
    "the weights tell",
    "must be told",
    "must be told of another shape than a preset's",
)


def table() -> str:
    """Methods first, by title."""
    families = make_catalogue("methods").rows["methods"]
    families = sorted(families, key=lambda row: (row["token_modes"] == ["dense"], row["method"]))
    rows = [HEADINGS, ("---",) * len(HEADINGS), *map(_row, families)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def with_table(page: str) -> str:
    """The page with the table as it has to be."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def _row(family: dict[str, Any]) -> tuple[str, ...]:
    name, keys_of = family["family"], family["keys_of"]
    return (
        f"{family['method']} (`{name}`)",
        _shortened(family["presets"]),
        "own" if keys_of == name else f"{FAMILIES[keys_of].title}'s",
        ", ".join(family["token_modes"]),
        _code(family["told_by_the_weights"]),
        _code(family["must_be_told"]),
        _code(family["assumed_of_a_preset"]),
    )


def _shortened(names: list[str]) -> str:
    """`swin_t`, `_s`, `_b`."""
    prefix = names[0].rpartition("_")[0] if names else ""
    return _code([*names[:1], *(name.removeprefix(prefix) for name in names[1:])])


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "–"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
