"""From the key layouts of the official repositories to canonical names (`model.keys`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from svit_deploy.errors import InputError
from svit_deploy.io.text import some
from svit_deploy.methods.families import FAMILIES, Family
from svit_deploy.model.keys import Shape, Tensors
from svit_deploy.tasks import TASKS, Task

Arrays = Mapping[str, np.ndarray]
BACKBONE = "backbone."
"""In front of a backbone's keys where a checkpoint has heads beside it."""


def detect_family(tensors: Arrays) -> Family:
    """The family whose keys these are; others may run on the same weights.

    Args:
        tensors: official names, less `backbone.`.

    Raises:
        InputError: another model, or an incomplete one.
    """
    for family in FAMILIES.values():
        if family.matches(tensors):
            return family
    titles = ", ".join(family.title for family in FAMILIES.values() if not family.keys_of)
    raise InputError(
        f"the checkpoint is of no known method ({titles}): its {len(tensors)} keys begin with "
        f"{some(tensors)}",
        "give a checkpoint in the layout of a method's official code",
    )


def unwrap(tensors: Arrays) -> tuple[dict[str, np.ndarray], str]:
    """Official keys less `backbone.`, and less what a wrapper put before all: `model.`, `net.`.

    Returns:
        The tensors, and the wrapper's prefix. No model is one part alone, so what all keys begin
        with is none of its parts, unless it counts layers.
    """
    removed, wrapped = "", dict(tensors)
    while len(wrapped) > 1:
        first = next(iter(wrapped)).partition(".")[0] + "."
        rest = [key.removeprefix(first) for key in wrapped]
        if not all(key.startswith(first) for key in wrapped) or any(k[:1].isdigit() for k in rest):
            break
        wrapped = dict(zip(rest, wrapped.values(), strict=True))
        removed += first
    return {key.removeprefix(BACKBONE): array for key, array in wrapped.items()}, removed


def has_heads(tensors: Arrays, task: Task) -> bool:
    """Whether the weights of the task's own heads are among these."""
    return any(key.startswith(task.prefixes) for key in tensors) if task.prefixes else True


def infer_dims(tensors: Arrays, family: Family, task: Task) -> Any:
    """Reads the sizes off a few tensors; `to_canonical` checks all of them against the rest.

    Raises:
        InputError: one of the tensors that tell is missing or has the wrong rank.
    """
    asked = Tensors(tensors, family.name)
    return task.infer_heads(asked, family.infer(asked))


def expected_shapes(dims: Any, task: Task) -> dict[str, Shape]:
    """Canonical name to shape, for every tensor of a model."""
    return FAMILIES[dims.family].shapes(dims) | task.head_shapes(dims)


def to_canonical(tensors: Arrays, dims: Any, task: Task) -> dict[str, np.ndarray]:
    """Renames an official checkpoint's tensors (not copied) and checks that they all fit.

    The heads of other tasks are left out.

    Raises:
        InputError: keys are missing or unexpected, or tensors have other shapes or types than
            `dims` asks for; the one sentence names the first few of each.
    """
    family, shapes = FAMILIES[dims.family], expected_shapes(dims, task)
    others = tuple(p for other in TASKS.values() for p in other.prefixes if other is not task)
    tensors = {
        key: array
        for key, array in tensors.items()
        if not (others and key.startswith(others)) or key.startswith(task.prefixes or "\0")
    }
    keys = {name: family.official_name(name) for name in shapes}
    missing = [key for key in keys.values() if key not in tensors]
    unexpected = sorted(k for k in set(tensors) - set(keys.values()) if not family.is_unused(k))
    misshapen = [
        f"{key} is {tensors[key].dtype}{list(tensors[key].shape)}, not float32{list(shapes[name])}"
        for name, key in keys.items()
        if key in tensors
        and (tensors[key].shape != shapes[name] or tensors[key].dtype != np.float32)
    ]
    faults = [
        f"{len(names)} {kind} ({some(names, 3)})"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshapen", misshapen),
        )
        if names
    ]
    if faults:
        raise InputError(
            f"the checkpoint does not fit family {dims.family} with {dims}: {', '.join(faults)}",
            "give an unchanged checkpoint of the official training code",
        )
    return {name: tensors[key] for name, key in keys.items()}


def to_official(weights: Arrays, family: str, task: Task) -> dict[str, np.ndarray]:
    """The inverse of `to_canonical`: canonical names to those of the official repository."""
    official, prefix = FAMILIES[family].official_name, BACKBONE if task.prefixes else ""
    return {
        name if task.prefixes and name.startswith(task.prefixes) else prefix + official(name): array
        for name, array in weights.items()
    }
