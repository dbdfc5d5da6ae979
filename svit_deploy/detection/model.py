"""From an mmdet checkpoint to a detection model: its configuration and canonical weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from svit_deploy.checkpoint import Checkpoint, read_checkpoint
from svit_deploy.config import Preprocess, spread_over_gates
from svit_deploy.detection.config import DEFAULT_SIZES, AdapterConfig, AdapterSettings, Task
from svit_deploy.detection.layout import (
    AdapterDims,
    adapter_to_canonical,
    infer_adapter_dims,
    refuse_classification,
    strip_backbone,
)
from svit_deploy.errors import InputError
from svit_deploy.methods import METHODS
from svit_deploy.models import Model
from svit_deploy.models.presets import Arch, recognise, resolve_arch
from svit_deploy.models.serialise import check_config


def load_detector(
    path: Path,
    task: Task,
    *,
    arch: str | None = None,
    overrides: Mapping[str, str] | None = None,
    image_size: tuple[int, int] = DEFAULT_SIZES.opt,
    allow_pickle: bool = False,
) -> Model:
    """Reads a checkpoint and builds its model; see `read_checkpoint` and `build_detector`."""
    checkpoint = read_checkpoint(path, allow_pickle=allow_pickle)
    return build_detector(checkpoint, task, arch=arch, overrides=overrides, image_size=image_size)


def build_detector(
    source: Checkpoint | Mapping[str, np.ndarray],
    task: Task,
    *,
    arch: str | None = None,
    overrides: Mapping[str, str] | None = None,
    image_size: tuple[int, int] = DEFAULT_SIZES.opt,
) -> Model:
    """Matches weights in mmdet's layout with an architecture.

    Args:
        source: a checkpoint, or its tensors alone.
        task: `BACKBONE` leaves the heads of a whole detector out.
        arch, overrides: as for `models.build_model`.
        image_size: the typical (height, width), multiples of 32.

    Raises:
        InputError: weights of another model than `arch`, a backbone alone for `DETECT`,
            incomplete weights, or settings that contradict them.
        UsageError: an unknown architecture or setting, or a value that cannot work.
    """
    checkpoint = source if isinstance(source, Checkpoint) else None
    tensors = source.tensors if isinstance(source, Checkpoint) else source
    refuse_classification(tensors, task.value)
    tensors = strip_backbone(tensors)
    dims = infer_adapter_dims(tensors, heads=task is Task.DETECT)
    weights = adapter_to_canonical(tensors, dims)
    settings, name, notes = resolve_arch(arch, overrides or {}, dims)
    _check_arch(settings, dims, name)
    args = checkpoint.training_args if checkpoint else {}
    config = _configure(settings, dims, image_size, _class_names(args.get("CLASSES"), dims))
    check_config(config)
    return Model(
        config, weights, name, checkpoint, (*(checkpoint.notes if checkpoint else ()), *notes)
    )


def _check_arch(settings: Arch, dims: AdapterDims, name: str) -> None:
    match = recognise(dims)
    fix = f"use --arch {match}" if match and match != name else "correct the setting or the file"
    if settings.family != dims.family:
        raise InputError(
            f"the checkpoint is a {dims.family} with {dims.num_gates} gates, and {name} is of the "
            f"family {settings.family}",
            fix,
        )
    wrong = [
        f"{field} {wanted} (the checkpoint has {getattr(dims, field)})"
        for field in ("embed_dim", "depth", "patch_size", "num_classes")
        if (wanted := getattr(settings, field)) not in (None, getattr(dims, field))
        and (field != "num_classes" or dims.fpn_dim)
    ]
    if (wanted := len(settings.gate_blocks)) and wanted != dims.num_gates:
        wrong.append(f"{wanted} gate_blocks (the checkpoint has {dims.num_gates} gates)")
    if wrong:
        raise InputError(f"the architecture {name} has {', '.join(wrong)}", fix)


def _class_names(names: object, dims: AdapterDims) -> tuple[str, ...]:
    """The checkpoint's own, if it tells as many as it has classes."""
    if not isinstance(names, list | tuple) or len(names) != dims.num_classes:
        return ()
    return tuple("".join(c if c.isprintable() else "?" for c in str(name)[:80]) for name in names)


def _configure(
    settings: Arch, dims: AdapterDims, image_size: tuple[int, int], class_names: tuple[str, ...]
) -> AdapterConfig:
    side = math.isqrt(max(dims.num_patches, 0))
    if side * side != dims.num_patches:
        raise InputError(
            f"the position embedding has {dims.num_patches} patches, which is no square grid",
            "give a checkpoint pre-trained on square images",
        )
    method = METHODS[dims.family]
    chosen: AdapterSettings = method.choose(settings.settings)
    if chosen.deform_heads < 1 or dims.samples % chosen.deform_heads:
        raise InputError(
            f"{dims.samples} samples per query are no multiple of {chosen.deform_heads} heads",
            "give the number that the model was trained with: --set deform_heads=NUMBER",
        )
    count, depth = dims.num_gates, dims.depth
    shares, rest = divmod(depth, max(dims.interactions, 1))
    if rest and not chosen.interaction_blocks:
        raise InputError(
            f"{depth} blocks have no equal shares for {dims.interactions} interactions",
            "give the blocks of each interaction: --set interaction_blocks=3,3,3,3",
        )
    blocks = chosen.interaction_blocks or (shares,) * dims.interactions
    if len(blocks) != dims.interactions:
        raise InputError(
            f"interaction_blocks has {len(blocks)} values, the checkpoint has "
            f"{dims.interactions} interactions",
            "give the number of blocks in each",
        )
    targets = settings.target_keep
    return AdapterConfig(
        family=dims.family,
        embed_dim=dims.embed_dim,
        depth=depth,
        num_heads=settings.num_heads,
        mlp_dim=dims.mlp_dim,
        patch_size=dims.patch_size,
        num_classes=dims.num_classes,
        image_size=image_size,
        native_grid=(side, side),
        gate_blocks=settings.gate_blocks or tuple(range(depth - count, depth)),
        gate_class_token=(True,) * count,
        target_keep=spread_over_gates(targets, count, "target_keep") if targets else (),
        thresholds=(0.0,) * count,
        block_eps=method.eps[0],
        gate_eps=method.eps[1],
        norm_eps=method.eps[2],
        preprocess=Preprocess(settings.mean, settings.std, 1.0, "bilinear"),
        settings=AdapterSettings(chosen.deform_heads, blocks),
        conv_dim=dims.conv_dim,
        deform_points=dims.samples // chosen.deform_heads,
        deform_dim=dims.deform_dim,
        ffn_dim=dims.ffn_dim,
        extra_extractors=dims.extra_extractors,
        fpn_dim=dims.fpn_dim,
        fc_dim=dims.fc_dim,
        class_names=class_names,
    )
