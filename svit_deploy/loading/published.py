"""What the published model of a checkpoint's shape has, where weights do not tell."""

from __future__ import annotations

from typing import Any

from svit_deploy.loading.arch import recognise
from svit_deploy.loading.presets import PRESETS
from svit_deploy.methods.families import Family
from svit_deploy.model.assumption import OF_PICTURES


def published_settings(family: Family, dims: Any, num_heads: int) -> dict[str, Any]:
    """The settings by name of the preset with these sizes and heads; none if there is no such."""
    name = recognise(dims, family.name)
    if name is None or PRESETS[name].num_heads != num_heads:
        return {}
    preset = PRESETS[name]
    settings = family.choose({**family.settings_from_weights(dims), **preset.settings}, dims)
    gates = family.method.gates(preset, dims, settings, family.class_token)
    return {
        **(vars(settings) if settings else {}),
        "gate_blocks": gates.blocks,
        "gate_class_token": gates.class_token,
        **{of_pictures: getattr(preset, of_pictures) for of_pictures in OF_PICTURES},
    }
