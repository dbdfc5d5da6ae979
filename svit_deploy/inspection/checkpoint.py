"""What a checkpoint's weights tell about its model, and what they cannot tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from svit_deploy.checkpoint import read_checkpoint
from svit_deploy.detection.layout import (
    HEADS,
    adapter_to_canonical,
    infer_adapter_dims,
    is_detection,
    strip_backbone,
)
from svit_deploy.errors import InputError
from svit_deploy.inspection.report import Inspection, Section, listed, mebibytes
from svit_deploy.methods import METHODS, Method
from svit_deploy.models import build_model, which_method
from svit_deploy.models.layout import Dims, detect_family, infer_dims, to_canonical
from svit_deploy.models.presets import PRESETS, Arch, recognise

# Arguments of the official training scripts that say something about inference.
TRAINING_ARGS = (
    "model", "input_size", "nb_classes", "data_set", "eval_crop_ratio", "distillation_type",
    "keep_ratio", "base_keep_ratio", "ratio_loss_lambda", "base_rate", "base_keep_rate",
    "fuse_token", "drop_loc",
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One property of the model.

    Attributes:
        value: JSON-able; None when it is not known.
        source: `weights`, `preset NAME`, `assumed`, or `needed`.
        option: what to type where the value is needed, or assumed and wrong.
    """

    name: str
    value: Any
    source: str
    option: str = ""

    def row(self) -> tuple[str, str, str]:
        value = listed(self.value if isinstance(self.value, list) else [self.value])
        is_open = self.source in ("assumed", "needed")
        return (
            self.name,
            "unknown" if self.value is None else value,
            f"{self.source}: {self.option}" if is_open else self.source,
        )


def inspect_checkpoint(path: Path) -> Inspection:
    """Describes a checkpoint, of a known model or not.

    Raises:
        InputError: see `read_checkpoint`.
        CapabilityError: a .pth file, and PyTorch is not installed.
    """
    checkpoint = read_checkpoint(path)
    tensors = checkpoint.tensors
    family, preset, problem = None, None, None
    found: list[Fact] = []
    candidates: tuple[str, ...] = ()
    try:
        if is_detection(tensors):
            family, preset, found = _describe_detector(tensors)
        else:
            keys = detect_family(tensors)
            dims = infer_dims(tensors, keys)
            preset = recognise(dims)
            family, candidates = which_method(keys, checkpoint.training_args)
            settings = _settings(METHODS[family], dims, checkpoint.training_args)
            found = _from_weights(dims) + _beyond_weights(dims, preset) + settings
            if preset and not any(fact.source == "needed" for fact in settings):
                build_model(checkpoint)
            else:
                to_canonical(tensors, dims)
    except InputError as error:
        problem = error.message
    args = {
        name: checkpoint.training_args[name]
        for name in TRAINING_ARGS
        if _is_sensible(checkpoint.training_args.get(name))
    }
    facts = {
        "size_bytes": checkpoint.size_bytes,
        "sha256": checkpoint.sha256,
        "container": checkpoint.container,
        "family": family,
        "candidates": list(candidates),
        "preset": preset,
        "tensors": len(tensors),
        "parameters": sum(array.size for array in tensors.values()),
        "model": [
            {"name": f.name, "value": f.value, "source": f.source, "option": f.option}
            for f in found
        ],
        "problem": problem,
        "training_args": args,
    }
    needed = [fact.option for fact in found if fact.source == "needed"]
    sections = [Section(_overview(facts, needed))]
    if found:
        sections.append(Section(tuple(f.row() for f in found), ("model", "value", "known from")))
    return Inspection("checkpoint", path.name, facts, tuple(sections), checkpoint.notes)


def _describe_detector(
    tensors: Mapping[str, np.ndarray],
) -> tuple[str, str | None, list[Fact]]:
    """Family, preset and facts of a (S)ViT-Adapter, with or without Mask R-CNN's heads."""
    own = strip_backbone(tensors)
    heads = any(key.startswith(HEADS) for key in own)
    dims = infer_adapter_dims(own, heads=heads)
    adapter_to_canonical(own, dims)
    preset = recognise(dims)
    tasks = ["backbone", "detect"] if heads else ["backbone"]
    sizes = {f.name: getattr(dims, f.name) for f in fields(dims)}
    for name in ("family", "distilled", "gate_dim"):
        del sizes[name]
    found = [Fact("tasks", tasks, "weights")]
    found += [Fact(name, value, "weights") for name, value in sizes.items()]
    shares = [dims.depth // max(dims.interactions, 1)] * dims.interactions
    settings = _settings(METHODS[dims.family], dims, {})
    found += [replace(fact, value=fact.value or shares) for fact in settings]
    skipped = ("gate_class_token", "crop_ratio", "interpolation")
    found += [fact for fact in _beyond_weights(dims, preset) if fact.name not in skipped]
    return dims.family, preset, found


def _is_sensible(value: Any) -> bool:
    """Whether JSON and the terminal can take it: no NaN, no integer of a thousand digits."""
    if isinstance(value, list | tuple):
        return all(map(_is_sensible, value))
    return isinstance(value, str) or (isinstance(value, int | float) and abs(value) < 2**53)


def _overview(facts: dict[str, Any], needed: list[str]) -> tuple[tuple[str, str], ...]:
    export = "ready"
    if facts["problem"]:
        export = f"not possible: {facts['problem']}"
    elif needed:
        export = f"needs {' '.join(needed)}, or --arch FILE"
    return (
        ("sha256", facts["sha256"]),
        ("size", mebibytes(facts["size_bytes"])),
        ("container", facts["container"]),
        ("tensors", f"{facts['tensors']}, {facts['parameters']} parameters"),
        ("family", " or ".join(facts["candidates"]) or facts["family"] or "unknown"),
        ("preset", facts["preset"] or "none matches"),
        ("export", export),
        ("trained with", ", ".join(f"{k} {v}" for k, v in facts["training_args"].items()) or "-"),
    )


def _from_weights(dims: Dims) -> list[Fact]:
    side = math.isqrt(max(dims.num_patches, 0))
    square = side * side == dims.num_patches
    values: dict[str, Any] = {
        "embed_dim": dims.embed_dim,
        "depth": dims.depth,
        "mlp_dim": dims.mlp_dim,
        "patch_size": dims.patch_size,
        "num_patches": dims.num_patches,
        "num_classes": dims.num_classes,
        "distilled": dims.distilled,
        "num_gates": dims.num_gates,
    }
    facts = [Fact(name, value, "weights") for name, value in values.items()]
    size = [side * dims.patch_size] * 2 if square else None
    source = "weights, as a square" if square else "needed"
    return [*facts, Fact("image_size", size, source, "--set image_size=HEIGHTxWIDTH")]


def _beyond_weights(dims: Dims, preset: str | None) -> list[Fact]:
    """What comes from a preset or an option: the weights are the same whatever these are."""
    known = f"preset {preset}" if preset else ""
    arch = PRESETS[preset] if preset else Arch(dims.family, 0)

    def fact(name: str, value: Any, option: str) -> Fact:
        source = known or ("needed" if value is None else "assumed")
        return Fact(name, list(value) if isinstance(value, tuple) else value, source, option)

    gates = dims.num_gates
    facts = [fact("num_heads", arch.num_heads or None, "--set num_heads=NUMBER")]
    if dims.num_heads:
        facts = [Fact("num_heads", dims.num_heads, "weights")]
    if METHODS[dims.family].trained_gates:
        last = tuple(range(dims.depth - gates, dims.depth))
        facts += [
            fact("gate_blocks", arch.gate_blocks or last, "--set gate_blocks=NUMBERS"),
            fact(
                "gate_class_token",
                arch.gate_class_token or (False,) * (gates - 1) + (True,),
                "--set gate_class_token=BOOLEANS",
            ),
        ]
        if arch.target_keep:
            facts.append(fact("target_keep", arch.target_keep, "--set target_keep=RATIOS"))
    return [
        *facts,
        fact("mean", arch.mean, "--set mean=R,G,B"),
        fact("std", arch.std, "--set std=R,G,B"),
        fact("crop_ratio", arch.crop_ratio, "--set crop_ratio=RATIO"),
        fact("interpolation", arch.interpolation, "--set interpolation=NAME"),
    ]


def _settings(method: Method, dims: Dims, args: Mapping[str, Any]) -> list[Fact]:
    """The method's own settings: from the weights, the training's arguments, or its defaults."""
    by_weights, by_args = method.told_by_weights(dims), method.told(args) or {}
    found = []
    for field in fields(method.settings) if method.settings else ():
        option = f"--set {field.name}=VALUE"
        if field.name in by_weights:
            value, source = by_weights[field.name], "weights"
        elif field.name in by_args:
            value, source = by_args[field.name], "training arguments"
        elif field.default is MISSING:
            value, source = None, "needed"
        else:
            value, source = field.default, "assumed"
        value = list(value) if isinstance(value, tuple) else value
        found.append(Fact(field.name, value, source, option))
    return found
