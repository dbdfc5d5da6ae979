"""docs/methods.md tells what a family's weights cannot: the table is held against the settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from svit_deploy.methods.families import FAMILIES

TABLE = {
    cells[0].split(",")[0]: cells
    for line in (Path(__file__).parents[2] / "docs" / "methods.md").read_text("utf-8").splitlines()
    if line.startswith("| ") and len(cells := [c.strip() for c in line.strip("|").split("|")]) == 6
}


def named(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_the_table_tells_what_must_be_told_and_what_is_assumed(family):
    _, _, _, modes, needed, assumed = TABLE[family.title]
    assert modes.split(", ") == [mode.value for mode in family.modes]
    assert named(needed) == list(family.needed)
    assert named(assumed) == list(family.assumed)
