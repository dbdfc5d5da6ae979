"""Matches the weights of a checkpoint with an architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from svit_deploy.errors import InputError
from svit_deploy.io.checkpoint import Checkpoint, read_checkpoint
from svit_deploy.io.text import some
from svit_deploy.loading.arch import recognise, resolve_arch
from svit_deploy.loading.assumptions import find_assumptions
from svit_deploy.loading.known_settings import with_known_settings
from svit_deploy.loading.layout import (
    detect_family,
    has_heads,
    infer_dims,
    to_canonical,
    unwrap,
)
from svit_deploy.loading.serialise import check_config
from svit_deploy.methods.families import FAMILIES, Family
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig, spread_over_gates
from svit_deploy.model.model import Model
from svit_deploy.tasks import TASKS, Task, task_named

Size = tuple[int, int]


def load_model(
    path: Path,
    *,
    task: str = "classify",
    arch: str | None = None,
    overrides: Mapping[str, str] | None = None,
    image_size: Size | None = None,
    allow_pickle: bool = False,
    weights: str | None = None,
) -> Model:
    """Reads a checkpoint and builds its model; see `read_checkpoint` and `build_model`."""
    checkpoint = read_checkpoint(path, allow_pickle=allow_pickle, weights=weights)
    return build_model(checkpoint, task=task, arch=arch, overrides=overrides, image_size=image_size)


def build_model(
    source: Checkpoint | Mapping[str, np.ndarray],
    *,
    task: str = "classify",
    arch: str | None = None,
    overrides: Mapping[str, str] | None = None,
    image_size: Size | None = None,
) -> Model:
    """Matches weights in an official layout with an architecture.

    Args:
        source: a checkpoint, or its tensors alone.
        task: what the model is for; weights of another task's heads are left out.
        arch: a preset's name or the path of an architecture file; None to recognise a preset by
            the weights.
        overrides: fields of `Arch` by name, as typed after `--set`.
        image_size: (height, width) in pixels to run at; None for the architecture's if the weights
            fit it, else the size that the weights were trained at, or the task's typical size.

    Raises:
        InputError: weights of another model than `arch` or of no model for the task, incomplete
            weights, or settings that contradict them.
        UsageError: an unknown task, architecture or setting, or a value that cannot work.
    """
    checkpoint = source if isinstance(source, Checkpoint) else None
    tensors, prefix = unwrap(source.tensors if isinstance(source, Checkpoint) else source)
    overrides, wanted = dict(overrides or {}), task_named(task)
    args = checkpoint.training_args if checkpoint else {}
    family = detect_family(tensors)
    check_task(tensors, family, wanted)
    dims = infer_dims(tensors, family, wanted)
    weights = to_canonical(tensors, dims, wanted)
    candidates: tuple[str, ...] = ()
    if checkpoint and arch is None:  # else the user has named what the model is
        overrides = {**checkpoint.settings, **overrides}
    if arch is None and "family" not in overrides:
        name, candidates = which_family(dims.family, args)
        overrides = {"family": name, **overrides}
    settings, name, notes = resolve_arch(arch, overrides, dims)
    _check_family(settings, dims, name)
    _check_used(settings)
    _check_dims(settings, dims, name)
    settings = with_known_settings(settings, dims, args, overrides)
    size_asked = image_size is not None
    if not size_asked and "image_size" in overrides:
        image_size = settings.image_size
    config, more_notes = _configure(settings, dims, wanted, image_size, args)
    check_config(config, size_asked)
    wanted.check(config)
    if checkpoint:
        notes = (*checkpoint.notes, *_trained_as(checkpoint), *notes)
    if prefix:
        notes = (f"prefix {prefix!r} removed", *notes)
    assumed = find_assumptions(settings, config, dims, wanted)
    return Model(config, weights, name, checkpoint, (*notes, *more_notes), candidates, assumed)


def which_family(family: str, args: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The family that a training's arguments tell, of those that run on a family's weights.

    Returns:
        Its name, the given one if nothing tells; and then all that it could be, if several. Weights
        that have a method's own tensors are that method's.
    """
    others = [other for other in FAMILIES.values() if other.keys_of == family]
    told = [o.name for o in others if o.method.settings_from_args(args) is not None]
    if len(told) == 1:
        return told[0], ()
    if not others or not FAMILIES[family].dense:
        return family, ()
    return family, (family, *(other.name for other in others))


def check_task(tensors: Mapping[str, np.ndarray], family: Family, task: Task) -> None:
    """Raises InputError for weights that are not of a model for the task."""
    served = family.backbone.tasks
    if task.name not in served:
        titles = {
            f.backbone.title: None for f in FAMILIES.values() if task.name in f.backbone.tasks
        }
        raise InputError(
            f"--task {task.name} needs a {' or '.join(titles)}, and the checkpoint is of "
            f"{family.title}",
            f"use --task {' or --task '.join(served)}",
        )
    heads = [t.name for t in TASKS.values() if t.prefixes and has_heads(tensors, t)]
    if heads and not set(heads) & set(served):
        raise InputError(
            f"the checkpoint is of --task {heads[0]}, on a backbone that is not known for it",
            "give a checkpoint in the layout of a method's official code",
        )
    if not has_heads(tensors, task):
        raise InputError(
            f"the checkpoint holds a backbone alone, without {' and '.join(task.prefixes)}*",
            f"use --task {served[0]}, or give the checkpoint of the whole model",
        )


def _trained_as(checkpoint: Checkpoint) -> tuple[str, ...]:
    args = checkpoint.training_args
    name = args.get("model", args.get("MODEL.NAME"))
    return (f"trained as {some([name])}, its arguments say",) if isinstance(name, str) else ()


def _check_family(settings: Arch, dims: Any, name: str) -> None:
    wanted, found = FAMILIES[settings.family], FAMILIES[dims.family]
    if found.name in (wanted.name, wanted.keys_of):
        return
    match = recognise(dims)
    fix = f"use --arch {match}" if match else f"use an architecture of the family {dims.family}"
    if found.dense and found.backbone is wanted.backbone:
        raise InputError(
            f"the checkpoint is a plain {found.title} without gates: as {name} its gates would be "
            "random",
            f"give the fine-tuned {wanted.title} checkpoint, or {fix}",
        )
    gates = f" with {dims.num_gates} gates" if dims.num_gates else ""
    spelled = found.title[1:2].isupper()  # an SViT, a Swin
    article = "an" if found.title[0] in ("AEFHILMNORSX" if spelled else "AEIOU") else "a"
    raise InputError(
        f"the checkpoint is {article} {found.title}{gates}, and {name} is of the family "
        f"{settings.family}",
        fix,
    )


def _check_used(settings: Arch) -> None:
    """Raises InputError for a setting that would be dropped."""
    family = FAMILIES[settings.family]
    if settings.frames and not family.backbone.frames:
        raise InputError(f"frames is no setting of {family.name}", "leave it out")
    used = {"gate_blocks": True, "gate_class_token": family.class_token}
    for name, is_used in used.items():
        if getattr(settings, name) and not (is_used and family.method.trained_gates):
            has = family.method.blocks_setting
            raise InputError(
                f"{name} is no setting of {family.name}",
                f"use {has}" if is_used and has != name else "leave it out",
            )


def _check_dims(settings: Arch, dims: Any, name: str) -> None:
    sizes = ("embed_dim", "depth", "patch_size", "num_classes", "distilled")
    wrong = [
        f"{field} {wanted} (the checkpoint has {getattr(dims, field)})"
        for field in sizes
        if (wanted := getattr(settings, field)) not in (None, getattr(dims, field))
        and (field != "num_classes" or dims.num_classes)
    ]
    if wrong:
        match = recognise(dims)
        raise InputError(
            f"the architecture {name} has {', '.join(wrong)}",
            f"use --arch {match}" if match and match != name else "correct the setting or the file",
        )
    if settings.gate_blocks and len(settings.gate_blocks) != dims.num_gates:
        raise InputError(
            f"gate_blocks has {len(settings.gate_blocks)} values, the checkpoint has "
            f"{dims.num_gates} gates",
            "give the block, counted from 0, that each gate stands in front of",
        )
    if dims.num_gates > dims.depth:
        raise InputError(
            f"the checkpoint has {dims.num_gates} gates for {dims.depth} blocks",
            "give a checkpoint with one gate per block at most",
        )


def _configure(
    settings: Arch,
    dims: Any,
    task: Task,
    image_size: Size | None,
    args: Mapping[str, Any],
) -> tuple[ModelConfig, tuple[str, ...]]:
    family, patch = FAMILIES[settings.family], dims.patch_size
    if foreign := settings.task.keys() - set(task.settings):
        raise InputError(
            f"{min(foreign)} is no setting of --task {task.name}",
            f"use {', '.join(task.settings)}" if task.settings else "leave it out",
        )
    native_grid = _native_grid(settings, dims, image_size)
    native_size = (native_grid[0] * patch, native_grid[1] * patch)
    size = image_size or task.typical_size or native_size
    notes = []
    if not task.many_sizes:
        if image_size is None and settings.image_size not in (None, native_size):
            notes.append(f"image size {size[0]}x{size[1]} taken from the weights")
        elif size != native_size and family.backbone.has_positions:
            notes.append(
                f"position embedding resized from {native_size[0]}x{native_size[1]} "
                f"to {size[0]}x{size[1]} pixels"
            )
    chosen = family.choose(settings.settings, dims)
    gates = family.method.gates(settings, dims, chosen, family.class_token)
    count = len(gates.blocks)
    config = ModelConfig(
        family=family.name,
        embed_dim=dims.embed_dim,
        depth=dims.depth,
        num_heads=dims.num_heads or settings.num_heads,
        mlp_dim=dims.mlp_dim,
        patch_size=patch,
        num_classes=dims.num_classes,
        image_size=size,
        native_grid=native_grid,
        distilled=dims.distilled,
        gate_blocks=gates.blocks,
        gate_class_token=_per_gate(gates.class_token, count, "gate_class_token"),
        target_keep=_per_gate(settings.target_keep, count, "target_keep"),
        thresholds=() if family.method.counted else (0.0,) * count,
        block_eps=family.eps[0],
        gate_eps=family.eps[1],
        norm_eps=family.eps[2],
        preprocess=task.preprocess(settings),
        settings=chosen,
        class_token=family.class_token,
        backbone=family.backbone.config_sizes(dims, chosen),
        task=_numbers(task.config_numbers(dims, args), settings),
        gate_stage=family.method.gate_stage if gates.blocks else 0,
        frames=settings.frames or family.backbone.frames,
    )
    return config, tuple(notes)


def _numbers(numbers: Any, settings: Arch) -> Any:
    """A task's numbers with those that somebody told."""
    return replace(numbers, **settings.task) if settings.task else numbers


def _native_grid(settings: Arch, dims: Any, image_size: Size | None) -> Size:
    """Rows and columns of the position embedding.

    The weights tell only their product: the architecture's image size decides if it fits, then a
    square, then the wanted image size if it fits.
    """

    def fits(size: Size | None) -> Size | None:
        if size is None or any(side % dims.patch_size for side in size):
            return None
        grid = (size[0] // dims.patch_size, size[1] // dims.patch_size)
        return grid if grid[0] * grid[1] == dims.num_patches else None

    side = math.isqrt(max(dims.num_patches, 0))
    square = (side, side) if side and side * side == dims.num_patches else None
    grid = fits(settings.image_size) or square or fits(image_size)
    if grid is None:
        raise InputError(
            f"the position embedding has {dims.num_patches} patches, which is no square grid",
            "give the size that the model was trained at: --set image_size=HEIGHTxWIDTH",
        )
    return grid


def _per_gate(values: tuple[Any, ...], count: int, name: str) -> tuple[Any, ...]:
    return spread_over_gates(values, count, name) if values else ()
