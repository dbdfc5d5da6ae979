"""The settings of a model that its weights and its training's arguments tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from svit_deploy.errors import InputError
from svit_deploy.loading.arch import parse_overrides, parse_setting
from svit_deploy.methods.families import FAMILIES, Family
from svit_deploy.model.arch import Arch
from svit_deploy.model.assumption import typed


def settings_from_args(family: Family, args: Mapping[str, Any]) -> dict[str, Any]:
    """What a training's arguments tell, each as its setting's type.

    Raises:
        InputError: a value of another type.
    """
    found = family.method.settings_from_args(args) or {}
    where = "the training's arguments: "
    return {name: parse_setting(name, value, where, InputError) for name, value in found.items()}


def with_known_settings(
    arch: Arch, dims: Any, args: Mapping[str, Any], overrides: Mapping[str, str]
) -> Arch:
    """The architecture with the settings that the weights and the training's arguments tell.

    What a user sets by name wins over the arguments, and they win over a preset.

    Raises:
        InputError: somebody says otherwise than the weights.
    """
    family = FAMILIES[arch.family]
    by_user = {k: v for k, v in parse_overrides(overrides).items() if k in arch.settings}
    by_weights, by_args = family.settings_from_weights(dims), settings_from_args(family, args)
    for said, where, fix in (
        (by_user, "", "leave {} out"),
        (by_args, " in the training's arguments", "give weights and arguments of one training"),
    ):
        for name in by_weights:
            if name in said and said[name] != by_weights[name]:
                raise InputError(
                    f"{name} is {typed(said[name])}{where}, and the weights tell "
                    f"{typed(by_weights[name])}",
                    fix.format(name),
                )
    known = by_args | by_weights
    return replace(
        arch,
        settings={**arch.settings, **known, **by_user},
        known=arch.known | known.keys(),
    )
