"""Which settings of a model nobody told, and which of them are guesses that no export may make."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from svit_deploy.errors import InputError
from svit_deploy.loading.presets import PRESETS
from svit_deploy.loading.published import published_settings
from svit_deploy.methods.families import family_of
from svit_deploy.model.arch import Arch
from svit_deploy.model.assumption import OF_PICTURES, Assumption
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.model import CUSTOM, Model
from svit_deploy.tasks import Task


def find_assumptions(
    arch: Arch, config: ModelConfig, dims: Any, task: Task
) -> tuple[Assumption, ...]:
    """The settings of a configured model that are none of `arch.known`."""
    family, preprocess = family_of(config), config.preprocess
    gates = ("gate_blocks", "gate_class_token")
    values: dict[str, Any] = {
        name: getattr(config if name in gates else config.settings, name)
        for name in (*family.needed, *family.assumed)
    }
    values |= {"mean": preprocess.mean, "std": preprocess.std}
    if task.crops:  # else how it is scaled is the task's
        values |= {"crop_ratio": preprocess.crop_ratio, "interpolation": preprocess.interpolation}
    sampled = {name: getattr(config.task, name) for name in task.settings}
    sampled |= {"frames": config.frames} if config.frames else {}
    values |= sampled
    method = fields(family.method.settings) if family.method.settings else ()
    selecting = {*(entry.name for entry in method), *gates}
    published = published_settings(family, dims, config.num_heads)
    return tuple(
        Assumption(
            name,
            value,
            name in selecting,
            published.get(name) == value,
            name in OF_PICTURES or name in sampled,
        )
        for name, value in values.items()
        if name not in arch.known and value is not None
    )


def refuse_guesses(model: Model, strict: bool, pictures_decide: bool = False) -> None:
    """Raises InputError for a model of which something is assumed that may not be.

    Args:
        strict: whether nothing may be.
        pictures_decide: whether thresholds or budgets are chosen on pictures.
    """
    refused = [one for one in model.assumptions if strict or one.is_guess(pictures_decide)]
    if not refused:
        return
    *names, last = (one.name for one in refused)
    told = f"{', '.join(names)} and {last}" if names else last
    what = f"nobody told {told} of this {family_of(model.config).title}"
    if model.arch in (CUSTOM, *PRESETS):
        fix, typed_in = "give the trained ones", " ".join(one.option for one in refused)
    else:
        fix = f"write the trained ones into {model.arch}"
        typed_in = ", ".join(f"'{one.line}'" for one in refused)
    raise InputError(
        f"--strict assumes nothing, and {what}"
        if strict
        else f"{what}, and no published model of its shape stands behind a guess",
        f"{fix}, where this would be the guess: {typed_in}",
    )
