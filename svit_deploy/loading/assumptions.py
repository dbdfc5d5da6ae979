"""Which settings of a model nobody told: the weights' forward pass depends on each of them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from svit_deploy.errors import InputError
from svit_deploy.methods.families import family_of
from svit_deploy.model.arch import Arch
from svit_deploy.model.assumption import Assumption, typed
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.model import Model
from svit_deploy.tasks import Task


def find_assumptions(arch: Arch, config: ModelConfig, task: Task) -> tuple[Assumption, ...]:
    """The settings of a configured model that are none of `arch.known`."""
    family, preprocess = family_of(config), config.preprocess
    gates = ("gate_blocks", "gate_class_token")
    values: dict[str, Any] = {
        name: getattr(config if name in gates else config.settings, name)
        for name in (*family.needed, *family.assumed)
    }
    values |= {"mean": preprocess.mean, "std": preprocess.std}
    if not task.many_sizes:  # else nothing is cropped, and how it is scaled is the task's
        values |= {"crop_ratio": preprocess.crop_ratio, "interpolation": preprocess.interpolation}
    method = fields(family.method.settings) if family.method.settings else ()
    selecting = {*(entry.name for entry in method), *gates}
    return tuple(
        Assumption(name, value, name in selecting)
        for name, value in values.items()
        if name not in arch.known and value is not None
    )


def refuse_assumptions(model: Model) -> None:
    """Raises InputError for a model of which anything is assumed."""
    if not model.assumptions:
        return
    names = " and ".join(one.name for one in model.assumptions)
    typed_in = " ".join(f"--set {one.name}={typed(one.value)}" for one in model.assumptions)
    raise InputError(
        f"--strict assumes nothing, and neither the weights nor a preset tell {names}",
        f"give the trained ones; these would be assumed: {typed_in}",
    )
