"""What a bundle records of its samples: selections, and arrays that may come from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from svit_deploy import names
from svit_deploy.methods.families import family_of
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.result import Result, Selected
from svit_deploy.tasks.runs import Part, Rounded

Wanted = dict[str, tuple[Any, tuple[int, ...]]]
"""Type and shape of each array, for one image."""


ROUNDED, COMPUTED = "rounded.", "computed."
"""What arrays of the reference with rounded numbers begin with; see `runs.Part`."""


SHAKEN = "shaken."
"""The same, where what the heads read is off by rounding."""


def named(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The same under the names that they have of the reference with rounded numbers."""
    return {prefix + name: value for name, value in arrays.items()}


def rounded_runs(part: Part) -> dict[str, Result]:
    """What is recorded of the reference with rounded numbers, by what its arrays begin with."""
    runs = {ROUNDED: part.rounded, COMPUTED: part.computed}
    return {prefix: run.result for prefix, run in runs.items() if run is not None}


def with_rounded(part: Part, runs: Mapping[str, Result]) -> Part:
    """The part with what `rounded_runs` gave of it."""
    whole = {prefix: Rounded(result) for prefix, result in runs.items()}
    return replace(part, rounded=whole.get(ROUNDED), computed=whole.get(COMPUTED))


def check_array(
    name: str, array: np.ndarray | None, dtype: Any, shape: tuple[int, ...]
) -> np.ndarray:
    """The array, if it is one of this type and shape; -1 is any length.

    Raises:
        ValueError: in words, what it is instead.
    """
    if array is None:
        raise ValueError(f"it has no array {name!r}")
    fits = len(array.shape) == len(shape) and all(
        wanted in (-1, size) for size, wanted in zip(array.shape, shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        found = f"{array.dtype}{list(array.shape)}"
        raise ValueError(f"array {name!r} is {found}, not {np.dtype(dtype)}{list(shape)}")
    return array


def wanted_selection(config: ModelConfig) -> Wanted:
    """The arrays that tell what was selected in images of the configuration's size.

    Masks and margins; of methods that count tokens the decisions, too, as the graph holds them.
    """
    method = family_of(config).method
    gates = (config.num_gates, method.mask_width(config))
    wanted: Wanted = {names.KEEP_MASK: (np.bool_, gates), names.MARGIN: (np.float32, gates)}
    if method.counted:
        wanted |= method.values(config) | method.reference_values(config)
    return wanted


def record_selection(config: ModelConfig, result: Result) -> dict[str, np.ndarray]:
    """The arrays of `wanted_selection`, of all images of a result."""
    selected = result.selected
    arrays = {names.KEEP_MASK: selected.keep_mask, names.MARGIN: selected.margin}
    return arrays | {n: result.values[n] for n in wanted_selection(config) if n not in arrays}


def restore_selection(
    config: ModelConfig, arrays: Mapping[str, np.ndarray], images: int
) -> tuple[Selected, dict[str, np.ndarray]]:
    """What was selected, and the decisions as the graph holds them."""
    method = family_of(config).method
    values = {}
    for gate in range(config.num_gates):
        values[names.decision_name(gate)] = arrays[names.KEEP_MASK][:, gate]
        values[names.margin_name(gate)] = arrays[names.MARGIN][:, gate]
    if method.counted:
        known = method.values(config) | method.reference_values(config)
        values = {name: arrays[name] for name in known}
    return method.decode_selection(config, values, images), values
