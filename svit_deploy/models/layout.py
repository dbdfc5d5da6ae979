"""From the key layouts of the official repositories to canonical names (`methods.keys`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from svit_deploy.errors import InputError
from svit_deploy.methods import METHODS
from svit_deploy.methods.keys import Dims, Shape, Tensors
from svit_deploy.torch_file import some

__all__ = [
    "Dims",
    "detect_family",
    "expected_shapes",
    "infer_dims",
    "official_name",
    "to_canonical",
    "to_official",
]


def official_name(name: str, family: str) -> str:
    """A canonical name in the layout of the family's official repository."""
    return METHODS[family].official_name(name)


def expected_shapes(dims: Dims) -> dict[str, Shape]:
    """Canonical name to shape, for every tensor of a model."""
    return METHODS[dims.family].shapes(dims)


def detect_family(tensors: Mapping[str, np.ndarray]) -> str:
    """The method whose keys these are; others may run on the same weights.

    Raises:
        InputError: another model, or an incomplete one.
    """
    if any("level_embed" in key or "rpn_head" in key for key in tensors):
        raise InputError(
            "the checkpoint is a detection model",
            "export it with --task detect or --task backbone",
        )
    for method in METHODS.values():
        if method.matches(tensors):
            return method.name
    own = (method for method in METHODS.values() if method.classifies and not method.keys_of)
    titles = ", ".join(method.title for method in own)
    raise InputError(
        f"the checkpoint is of no known method ({titles}): its {len(tensors)} keys begin with "
        f"{some(tensors)}",
        "give a classification checkpoint in the layout of a method's official code",
    )


def infer_dims(tensors: Mapping[str, np.ndarray], family: str) -> Dims:
    """Reads the sizes off a few tensors; `to_canonical` checks all of them against the rest.

    Raises:
        InputError: one of the tensors that tell is missing or has the wrong rank.
    """
    return METHODS[family].infer(Tensors(tensors, family))


def to_canonical(tensors: Mapping[str, np.ndarray], dims: Dims) -> dict[str, np.ndarray]:
    """Renames an official checkpoint's tensors (not copied) and checks that they all fit.

    Raises:
        InputError: keys are missing or unexpected, or tensors have other shapes or types than
            `dims` asks for; the one sentence names the first few of each.
    """
    return match_tensors(tensors, dims, expected_shapes(dims))


def match_tensors(
    tensors: Mapping[str, np.ndarray], dims: Dims, shapes: Mapping[str, Shape]
) -> dict[str, np.ndarray]:
    """The tensors under the canonical names of `shapes`; raises InputError as `to_canonical`."""
    keys = {name: official_name(name, dims.family) for name in shapes}
    missing = [key for key in keys.values() if key not in tensors]
    is_spare = METHODS[dims.family].is_spare
    unexpected = sorted(key for key in set(tensors) - set(keys.values()) if not is_spare(key))
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


def to_official(weights: Mapping[str, np.ndarray], family: str) -> dict[str, np.ndarray]:
    """The inverse of `to_canonical`: canonical names to those of the official repository."""
    return {official_name(name, family): array for name, array in weights.items()}
