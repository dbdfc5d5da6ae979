"""What there is: presets, methods, backbones and tasks, and what each must be told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from rich.console import Console
from rich.text import Text

from svit_deploy import __version__
from svit_deploy.backbones.backbone import Backbone
from svit_deploy.errors import UsageError
from svit_deploy.inspection.report import Section
from svit_deploy.loading.presets import PRESETS
from svit_deploy.methods.families import FAMILIES, Family
from svit_deploy.methods.method import Method
from svit_deploy.model.arch import Arch
from svit_deploy.model.assumption import in_words, typed
from svit_deploy.tasks import TASKS

SCHEMA_VERSION = 1
WIDE = 10_000
FOLDS = 1.5
"""How often as wide as the console a table may be: its widest columns fold."""
KINDS = ("presets", "methods", "backbones", "tasks")


@dataclass(frozen=True)
class Catalogue:
    """Rows of each kind asked for, JSON-able."""

    rows: Mapping[str, list[dict[str, Any]]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able record."""
        tool = {"name": "svit-deploy", "version": __version__}
        return {"schema_version": SCHEMA_VERSION, "tool": tool, **self.rows}

    def render(self, console: Console) -> None:
        """Prints a table for each kind, or row by row what is too wide for the console."""
        for kind, rows in self.rows.items():
            console.print(Text(kind, "bold"))
            names = [name.replace("_", " ") for name in rows[0]]
            cells = [tuple(map(_cell, row.values())) for row in rows]
            sections = [Section(tuple(cells), tuple(names))]
            wide = console.options.update(max_width=WIDE)
            table = sections[0].table(console)
            if console.measure(table, options=wide).maximum > FOLDS * console.width:
                sections = [Section(tuple(zip(names, row, strict=True))) for row in cells]
            for section in sections:
                console.print(section.table(console))
                console.print()
        how = (
            "export is told with --arch PRESET, or --set NAME=VALUE, such as --set family=ats; "
            "what is assumed of a preset's shape must be told of any other"
        )
        console.print(how, highlight=False)


def make_catalogue(kind: str | None = None) -> Catalogue:
    """What there is of a kind, or of all.

    Raises:
        UsageError: an unknown kind.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError(f"there are no {kind!r} to list", f"use {', '.join(KINDS)}, or no name")
    rows = {
        "presets": [_preset(name, arch) for name, arch in PRESETS.items()],
        "methods": [_method(family) for family in FAMILIES.values()],
        "backbones": _backbones(),
        "tasks": _tasks(),
    }
    return Catalogue({name: rows[name] for name in KINDS if kind in (None, name)})


def _preset(name: str, arch: Arch) -> dict[str, Any]:
    """A preset that is named with --arch tells all that its family must be told, or assumes."""
    size = arch.image_size
    return {
        "preset": name,
        "blocks": arch.depth,
        "channels": arch.embed_dim,
        "heads": arch.num_heads,
        "pixels": "x".join(map(str, size)) if size else None,
        "tells": {"family": arch.family, **{k: typed(v) for k, v in arch.settings.items()}},
    }


def _method(family: Family) -> dict[str, Any]:
    """A row of `families`: a method on a backbone."""
    required, usual = _settings(family.method)
    of_backbone = [name for names in _settings(family.backbone) for name in names]
    gates = ["gate_blocks", "gate_class_token"][: 1 + family.class_token]
    return {
        "family": family.name,
        "method": family.title,
        "backbone": family.backbone.title,
        "presets": [name for name, preset in PRESETS.items() if preset.family == family.name],
        "keys_of": family.keys_of or family.name,
        "token_modes": [mode.value for mode in family.modes],
        "told_by_the_weights": list(family.told_by_weights),
        "must_be_told": (["family"] if family.keys_of else []) + required,
        "assumed_of_a_preset": of_backbone + usual + gates * family.method.trained_gates,
    }


def _settings(axis: Backbone | Method) -> tuple[list[str], list[str]]:
    """Of those that the weights do not tell, the ones without and with a usual value."""
    entries = [
        entry
        for entry in (fields(axis.settings) if axis.settings else ())
        if entry.name not in axis.told_by_weights
    ]
    required = [entry.name for entry in entries if entry.default is MISSING]
    return required, [entry.name for entry in entries if entry.name not in required]


def _backbones() -> list[dict[str, Any]]:
    titles = dict.fromkeys(family.backbone.title for family in FAMILIES.values())
    found = []
    for title in titles:
        families = [family for family in FAMILIES.values() if family.backbone.title == title]
        tasks = dict.fromkeys(task for family in families for task in family.backbone.tasks)
        found.append(
            {
                "backbone": title,
                "tasks": list(tasks),
                "families": [family.name for family in families],
            }
        )
    return found


def _tasks() -> list[dict[str, Any]]:
    return [
        {
            "task": task.name,
            "gives": task.noun,
            "image_sizes": "a range" if task.many_sizes else "one",
            "precisions": list(task.limits),
            "export_needs": ["torch", *(package for package, _ in task.packages)],
            "backbones": list(
                dict.fromkeys(
                    family.backbone.title
                    for family in FAMILIES.values()
                    if task.name in family.backbone.tasks
                )
            ),
        }
        for task in TASKS.values()
    ]


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return in_words(value) or "-"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
