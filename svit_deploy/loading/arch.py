"""Architectures as users give them: presets by name, architecture files, single settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_type_hints

from svit_deploy.backbones.backbone import Backbone
from svit_deploy.errors import InputError, UsageError
from svit_deploy.io.strict_yaml import read_yaml
from svit_deploy.io.text import shown
from svit_deploy.loading.presets import PRESETS
from svit_deploy.methods.families import FAMILIES
from svit_deploy.methods.method import Method
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import MOST, parse_image_size
from svit_deploy.model.keys import Dims
from svit_deploy.model.model import CUSTOM
from svit_deploy.tasks import TASKS


def _whole(value: Any) -> int:
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _boolean(value: Any) -> bool:
    return {"true": True, "false": False}[str(value).strip().lower()]


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value.strip()


def _family(value: Any) -> str:
    if (name := _word(value)) not in FAMILIES:
        raise ValueError
    return name


def _list(parse: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def parse_list(value: Any) -> tuple[Any, ...]:
        items = value.split(",") if isinstance(value, str) else value
        several = isinstance(items, list | tuple)
        return tuple(parse(item) for item in (items if several else [items]))

    return parse_list


def _size(value: Any) -> tuple[int, int]:
    return parse_image_size("x".join(map(str, value if isinstance(value, list) else [value])))


def _count(most: int) -> tuple[Callable[[Any], int], str]:
    def parse_count(value: Any) -> int:
        if not 1 <= _whole(value) <= most:
            raise ValueError
        return _whole(value)

    return parse_count, f"a whole number from 1 to {most}"


_COUNTS = ("num_heads", "embed_dim", "depth", "patch_size", "num_classes", "frames")
_NUMBERS = (_list(_number), "numbers with commas between them")
_FIELDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "family": (_family, f"one of {', '.join(FAMILIES)}"),
    **{name: _count(MOST[name]) for name in _COUNTS},
    "image_size": (_size, "pixels, such as 224 or 224x320"),
    "distilled": (_boolean, "true or false"),
    "gate_blocks": (_list(_whole), "whole numbers with commas between them"),
    "gate_class_token": (_list(_boolean), "true or false, with commas between them"),
    "target_keep": _NUMBERS,
    "mean": _NUMBERS,
    "std": _NUMBERS,
    "crop_ratio": (_number, "a number"),
    "interpolation": (_word, "nearest, bilinear or bicubic"),
}
_KINDS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    bool: (_boolean, "true or false"),
    int: (_whole, "a whole number"),
    float: (_number, "a number"),
    str: (_word, "a word"),
}


def _settings_fields() -> dict[str, tuple[Callable[[Any], Any], str]]:
    """How the settings of all families and tasks are parsed; equal names have equal types."""
    found = {}
    kinds = [family.settings for family in FAMILIES.values()]
    for kind in (*kinds, *(task.numbers if task.settings else None for task in TASKS.values())):
        if kind is None:
            continue
        hints = get_type_hints(kind)
        for name in (entry.name for entry in fields(kind)):
            hint = hints[name]
            if hint in _KINDS:
                found[name] = _KINDS[hint]
            else:
                parse, description = _KINDS[get_args(hint)[0]]
                found[name] = (_list(parse), f"{description}, or several with commas between them")
    return found


_SETTINGS = _settings_fields()
_OF_TASKS = frozenset(name for task in TASKS.values() for name in task.settings)


def parse_overrides(overrides: Mapping[str, str]) -> dict[str, Any]:
    """The values of `--set key=value`, each as its field's type.

    Raises:
        UsageError: an unknown key, or a value of another type.
    """
    return {key: parse_setting(key, text, "--set ", UsageError) for key, text in overrides.items()}


def find_arch(name: str) -> tuple[str, Arch]:
    """A preset by name, or an architecture file by path, with the name to show for it.

    Raises:
        UsageError: neither a preset nor a file.
        InputError: the file is not a flat YAML mapping of an Arch's fields.
    """
    if name in PRESETS:
        family = FAMILIES[PRESETS[name].family]
        return name, _said(PRESETS[name], family.backbone, family.method)
    path = Path(name)
    if not path.is_file():
        near = get_close_matches(name, PRESETS, n=5, cutoff=0.5) or PRESETS
        raise UsageError(
            f"--arch {name!r} is neither a known architecture nor a file",
            f"use one of {', '.join(near)}, or the path of a YAML file",
        )
    content = read_yaml(path)
    lines = content if isinstance(content, dict) else {}
    if missing := [key for key in ("family", "num_heads") if key not in lines]:
        raise InputError(
            f"{path} lacks the field {' and '.join(missing)}",
            "write one 'field: value' per line, for example 'num_heads: 6'",
        )
    for key, value in lines.items():  # before anything prints it: aliases nest without end
        if any(
            isinstance(item, list | dict) for item in (value if type(value) is list else [value])
        ):
            raise InputError(f"{path}: {shown(key)} is nested", "give a value, or a list of values")
    values = {
        key: parse_setting(key, value, f"{path}: ", InputError) for key, value in lines.items()
    }
    return path.name, _arch(values)


def _arch(values: Mapping[str, Any], base: Arch | None = None) -> Arch:
    """An architecture of fields and settings by name, over those of `base`."""
    plain = {key: value for key, value in values.items() if key in _FIELDS}
    others = {key: value for key, value in values.items() if key not in _FIELDS}
    task = {key: value for key, value in others.items() if key in _OF_TASKS}
    settings = {key: value for key, value in others.items() if key not in _OF_TASKS}
    known = frozenset(values)
    if base is None:
        return Arch(**plain, settings=settings, task=task, known=known)
    if plain.get("family", base.family) == base.family:
        settings, task = {**base.settings, **settings}, {**base.task, **task}
        known |= base.known
    known |= base.known & _FIELDS.keys()
    return replace(base, **plain, settings=settings, task=task, known=known)


def _said(preset: Arch, *axes: Backbone | Method) -> Arch:
    """A preset that says all that it has a value for, and the settings of some axes and tasks."""
    said = {name for name in _FIELDS if getattr(preset, name) not in (None, ())}
    served = FAMILIES[preset.family].backbone.tasks
    said |= {name for task in served for name in TASKS[task].settings}
    said |= {entry.name for axis in axes if axis.settings for entry in fields(axis.settings)}
    return replace(preset, known=frozenset(said))


def recognise(dims: Dims, family: str | None = None) -> str | None:
    """The preset with these dimensions, if there is one; of two, the one with this image size.

    All sizes of its weights count, but for those of classes and images.

    Args:
        family: the method to run; by default the one whose keys the weights have.
    """

    def shape(of: Dims) -> Dims:
        return replace(of, num_classes=0, num_patches=0, num_heads=0, heads=None)

    wanted = FAMILIES[family or dims.family]
    matches = [
        name
        for name, arch in PRESETS.items()
        if arch.family == wanted.name and shape(wanted.dims_from_arch(arch)) == shape(dims)
    ]

    def same_size(name: str) -> bool:
        height, width = PRESETS[name].image_size or (0, 0)
        return height * width == dims.num_patches * dims.patch_size**2

    return max(matches, key=same_size, default=None)


def resolve_arch(
    arch: str | None, overrides: Mapping[str, str], dims: Dims
) -> tuple[Arch, str, tuple[str, ...]]:
    """Chooses the architecture: what the user named, else the preset that the weights match.

    Args:
        arch: a preset's name, a YAML file's path, or None.
        overrides: `--set` values, which win over everything else.
        dims: what the weights tell.

    Returns:
        The architecture, its name (`CUSTOM` when only `overrides` make it), and notes on what was
        assumed.

    Raises:
        UsageError: an unknown name, key or value.
        InputError: a bad architecture file, or no preset matches and num_heads is unknown.
    """
    values = parse_overrides(overrides)
    notes: tuple[str, ...] = ()
    if arch is None:
        arch = recognise(dims, values.get("family")) or recognise(dims)
        notes = (f"recognised as {arch} by its dimensions",) if arch else ()
        if arch:  # a method's settings are a choice that nobody made
            found = PRESETS[arch]
            family = FAMILIES[found.family]
            own = family.method.settings
            chosen = {field.name for field in fields(own)} if own else set()
            kept = {name: v for name, v in found.settings.items() if name not in chosen}
            found = _said(replace(found, settings=kept), family.backbone)
            return _arch(values, found), arch, notes
    else:
        name, found = find_arch(arch)
        return _arch(values, found), name, notes
    if "num_heads" not in values and not dims.num_heads:
        families = [f.name for f in FAMILIES.values() if dims.family in (f.name, f.keys_of)]
        near = [name for name, preset in PRESETS.items() if preset.family in families]
        raise InputError(
            f"the weights ({dims}) match no known architecture, and do not tell num_heads",
            f"give --arch ({', '.join([*near, 'or a YAML file'])}) or --set num_heads=NUMBER",
        )
    heads = {"family": dims.family, "num_heads": dims.num_heads}
    return _arch({**heads, **values}), CUSTOM, notes


def parse_setting(
    key: Any, value: Any, where: str, error: type[UsageError] | type[InputError]
) -> Any:
    """A setting's value, from text or a plain value, as its field's type.

    Args:
        where: it was said, in front of the error's sentence.
        error: to raise for an unknown key, or a value of another type.
    """
    known = _FIELDS | _SETTINGS
    if key not in known:
        methods = "a setting of the method (svit-deploy list methods)"
        raise error(
            f"{where}{shown(key)} is unknown", f"use one of {', '.join(_FIELDS)}, or {methods}"
        )
    parse, description = known[key]
    try:
        return parse(value)
    except (ValueError, TypeError, KeyError, OverflowError, UsageError):
        raise error(f"{where}{key}={shown(value)} has a bad value", f"give {description}") from None
