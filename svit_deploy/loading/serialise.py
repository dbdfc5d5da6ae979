"""The rules that a model's configuration keeps, and its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, get_args, get_origin, get_type_hints

from svit_deploy.errors import InputError, UsageError
from svit_deploy.methods.families import FAMILIES, family_of
from svit_deploy.model.config import (
    MAX_IMAGE_SIZE,
    MOST,
    ModelConfig,
    Preprocess,
    check_ratios,
)
from svit_deploy.tasks.task import Task

AGAIN = "export the model again"
USUAL = {"class_token": True, "gate_stage": 0, "frames": 0}
"""Fields of a configuration that are left out where most families have these values."""


def check_config(config: ModelConfig, size_asked: bool = False) -> None:
    """Refuses a configuration that no forward pass can have.

    Args:
        size_asked: whether the image size is an option's value.

    Raises:
        InputError: a count below 1, heads that do not divide the width, an image size that the
            family cannot run, gates out of order or range, or a value per gate missing.
        UsageError: a keep ratio outside (0, 1], or an image size that was asked for.
    """
    if config.family not in FAMILIES:
        raise InputError(
            f"family {config.family!r:.80} is unknown", f"use one of {', '.join(FAMILIES)}"
        )
    family = family_of(config)
    counts = ["embed_dim", "depth", "num_heads", "mlp_dim", "patch_size"]
    if family.head is not None:
        counts.append("num_classes")
    for name in counts:
        if not 1 <= getattr(config, name) <= MOST[name]:
            raise InputError(f"{name} is {getattr(config, name)}", "give a complete checkpoint")
    if config.embed_dim % config.num_heads:
        raise InputError(
            f"embed_dim {config.embed_dim} is not divisible by num_heads {config.num_heads}",
            "give the number of heads that the model was trained with: --set num_heads=NUMBER",
        )
    if not 1 <= min(config.native_grid) <= max(config.native_grid) <= MAX_IMAGE_SIZE:
        raise InputError(
            f"the grid {config.native_grid} is empty or too large", "give a complete checkpoint"
        )
    if max(config.image_size) > MAX_IMAGE_SIZE:
        raise InputError(
            f"image size {config.image_size[0]}x{config.image_size[1]} is beyond {MAX_IMAGE_SIZE}",
            "give a smaller one",
        )
    most = MOST["frames"] if family.backbone.frames else 0
    if not min(most, 1) <= config.frames <= most:
        fix = f"give 1 to {most}: --set frames={family.backbone.frames}" if most else AGAIN
        raise InputError(f"frames is {config.frames}", fix)
    if config.gate_stage != (family.method.gate_stage if config.gate_blocks else 0):
        raise InputError(f"gate_stage is {config.gate_stage}", AGAIN)
    if misfit := family.misfit(config):
        error = UsageError if size_asked else InputError
        raise error(misfit.reason, "use --image-size {}x{}".format(*misfit.nearest))
    if config.class_token != family.class_token:
        raise InputError(f"class_token is {config.class_token}", AGAIN)
    _check_gates(config)


def _check_gates(config: ModelConfig) -> None:
    blocks, family = config.gate_blocks, family_of(config)
    setting = family.method.blocks_setting
    if blocks and family.dense:
        raise InputError(
            f"a {config.family} has no gates", "leave gate_blocks out, or use another family"
        )
    if list(blocks) != sorted(set(blocks)) or not all(0 <= b < config.depth for b in blocks):
        raise InputError(
            f"{setting} {list(blocks)} are not ascending block numbers below {config.depth}",
            f"blocks count from 0: --set {setting}=3,4,5",
        )
    counts = {
        "gate_class_token": len(blocks),
        "thresholds": 0 if family.method.counted else len(blocks),
    }
    for name, count in counts.items():
        if len(getattr(config, name)) != count:
            raise InputError(
                f"{name} has {len(getattr(config, name))} values for {count} gates",
                "give one per gate",
            )
    if len(config.target_keep) not in (0, len(blocks)):
        raise InputError(
            f"target_keep has {len(config.target_keep)} values for {len(blocks)} gates",
            "give one per gate, or none",
        )
    check_ratios(config.target_keep, "target_keep")
    family.check(config)
    places = family.method.places(config)
    if blocks and places is not None and blocks != places:
        raise InputError(
            f"gate_blocks {list(blocks)} are not the {list(places)} of the settings",
            AGAIN,
        )


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """A dictionary of plain JSON values: lists in the place of tuples.

    What most families have in common is left out (no settings, a class token); the fields of the
    backbone's and the task's own parts stand among the others.
    """
    content = _plain(asdict(config))
    for part in ("backbone", "task"):
        content |= content.pop(part) or {}
    usual = {"settings": None, **USUAL}
    return {k: v for k, v in content.items() if k not in usual or v != usual[k]}


def config_from_dict(content: Mapping[str, Any], task: Task) -> ModelConfig:
    """The inverse of `config_to_dict`, for content that may come from anywhere.

    Args:
        task: that the model is for.

    Raises:
        InputError: a field is missing, unknown or of another type, or `check_config` refuses.
        UsageError: a keep ratio outside (0, 1].
    """
    given = dict(content) if isinstance(content, Mapping) else {}
    name = given.get("family")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    ready: dict[str, Any] = {"settings": None, "backbone": None, "task": None}
    if family is not None:
        if task.name not in family.backbone.tasks:
            raise InputError(f"a {family.name} is not for the task {task.name}", AGAIN)
        if family.settings is not None:
            found = given.pop("settings", None)
            found = family.method.upgrade(found) if isinstance(found, Mapping) else found
            ready["settings"] = _build(family.settings, found, "family's settings")
        for part, kind in (("backbone", family.backbone.sizes), ("task", task.numbers)):
            if kind is not None:
                own = {f.name: given.pop(f.name) for f in fields(kind) if f.name in given}
                ready[part] = _build(kind, own, f"{part}'s part of the configuration")
        for unused in task.foreign_fields:  # 0.1 wrote a detector's fields with every backbone
            given.pop(unused, None)
    ready |= {name: value for name, value in USUAL.items() if name not in given}
    config = _build(ModelConfig, given, "model configuration", **ready)
    check_config(config)
    task.check(config)
    return config


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _build(kind: type, content: Any, where: str, **ready: Any) -> Any:
    """A dataclass out of a dictionary that names each of its fields not `ready`, and no other."""
    names = {field.name for field in fields(kind)} - set(ready)
    wrong = sorted(map(str, names ^ set(content))) if isinstance(content, Mapping) else ["fields"]
    if wrong:
        raise InputError(f"the {where} lacks or adds {', '.join(wrong)}", AGAIN)
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], content[name], name) for name in names}, **ready)


def _value(hint: Any, value: Any, name: str) -> Any:
    if hint is Preprocess:
        return _build(Preprocess, value, name)
    if get_origin(hint) is tuple:
        item, last = get_args(hint)
        if isinstance(value, list) and (last is Ellipsis or len(value) == 2):
            return tuple(_value(item, entry, name) for entry in value)
    elif type(value) is hint or (hint is float and type(value) is int):
        return hint(value)
    raise InputError(f"{name} of the model configuration is {value!r}", AGAIN)
