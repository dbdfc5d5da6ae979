"""From a checkpoint to a model: its configuration and its weights under canonical names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from svit_deploy.checkpoint import Checkpoint, read_checkpoint
from svit_deploy.config import ModelConfig, Preprocess, TokenMode, spread_over_gates
from svit_deploy.errors import InputError
from svit_deploy.methods import METHODS
from svit_deploy.models.layout import Dims, detect_family, infer_dims, to_canonical
from svit_deploy.models.presets import Arch, parse_overrides, recognise, resolve_arch
from svit_deploy.models.serialise import check_config, config_from_dict, config_to_dict
from svit_deploy.torch_file import some

__all__ = [
    "Model",
    "build_model",
    "config_from_dict",
    "config_to_dict",
    "load_model",
    "without_gates",
]


@dataclass(frozen=True)
class Model:
    """A model ready to run or export.

    Attributes:
        config: all that its forward pass needs beside the weights.
        weights: canonical names (see `models.layout`) to float32 arrays; `pos_embed` has the
            native grid's rows, whatever the image size.
        arch: a preset's name, an architecture file's name, or "custom".
        checkpoint: the file it came from, if any.
        notes: what was assumed or changed, for the user to read.
        candidates: methods that run on such weights, if nothing tells which it is.
    """

    config: ModelConfig
    weights: dict[str, np.ndarray]
    arch: str
    checkpoint: Checkpoint | None = None
    notes: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()


def without_gates(model: Model) -> Model:
    """The dense twin: the same weights, every block on every token."""
    config = replace(
        model.config, gate_blocks=(), gate_class_token=(), target_keep=(), thresholds=()
    )
    return replace(model, config=config)


def load_model(
    path: Path,
    *,
    arch: str | None = None,
    overrides: Mapping[str, str] | None = None,
    image_size: tuple[int, int] | None = None,
    allow_pickle: bool = False,
) -> Model:
    """Reads a checkpoint and builds its model; see `read_checkpoint` and `build_model`."""
    checkpoint = read_checkpoint(path, allow_pickle=allow_pickle)
    return build_model(checkpoint, arch=arch, overrides=overrides, image_size=image_size)


def build_model(
    source: Checkpoint | Mapping[str, np.ndarray],
    *,
    arch: str | None = None,
    overrides: Mapping[str, str] | None = None,
    image_size: tuple[int, int] | None = None,
) -> Model:
    """Matches weights in an official layout with an architecture.

    Args:
        source: a checkpoint, or its tensors alone.
        arch: a preset's name or the path of an architecture file; None to recognise a preset by
            the weights.
        overrides: fields of `Arch` by name, as typed after `--set`.
        image_size: (height, width) in pixels to run at; None for the architecture's if the weights
            fit it, else the size that the weights were trained at.

    Raises:
        InputError: weights of another model than `arch`, incomplete weights, or settings that
            contradict them.
        UsageError: an unknown architecture or setting, or a value that cannot work.
    """
    checkpoint = source if isinstance(source, Checkpoint) else None
    tensors = source.tensors if isinstance(source, Checkpoint) else source
    overrides = overrides or {}
    args = checkpoint.training_args if checkpoint else {}
    dims = infer_dims(tensors, detect_family(tensors))
    weights = to_canonical(tensors, dims)
    candidates: tuple[str, ...] = ()
    if arch is None and "family" not in overrides:
        family, candidates = which_method(dims.family, args)
        overrides = {"family": family, **overrides}
    settings, name, notes = resolve_arch(arch, overrides, dims)
    _check_family(settings, dims, name)
    _check_dims(settings, dims, name)
    settings = _with_told(settings, dims, args, overrides)
    if image_size is None and "image_size" in overrides:
        image_size = settings.image_size
    config, more_notes = _configure(settings, dims, image_size)
    check_config(config)
    if checkpoint:
        notes = (*checkpoint.notes, *_trained_as(checkpoint), *notes)
    return Model(config, weights, name, checkpoint, (*notes, *more_notes), candidates)


def which_method(family: str, args: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The method that a training's arguments tell, of those that run on a family's weights.

    Returns:
        Its name, the family's own if nothing tells; and then all that it could be, if several.
    """
    others = [method for method in METHODS.values() if method.keys_of == family]
    told = [method.name for method in others if method.told(args) is not None]
    if len(told) == 1:
        return told[0], ()
    return family, (family, *(method.name for method in others)) if others else ()


def _with_told(
    arch: Arch, dims: Dims, args: Mapping[str, Any], overrides: Mapping[str, str]
) -> Arch:
    """The architecture with the settings that the weights and the training's arguments tell.

    What a user sets by name wins over them, and they win over a preset.
    """
    method = METHODS[arch.family]
    typed = {k: v for k, v in parse_overrides(overrides).items() if k in arch.settings}
    by_weights = method.told_by_weights(dims)
    if contradicted := [
        key for key in typed if key in by_weights and typed[key] != by_weights[key]
    ]:
        raise InputError(
            f"{contradicted[0]} is {typed[contradicted[0]]}, and the weights tell "
            f"{by_weights[contradicted[0]]}",
            f"leave {contradicted[0]} out",
        )
    told = {**by_weights, **(method.told(args) or {})}
    return replace(arch, settings={**arch.settings, **told, **typed})


def _trained_as(checkpoint: Checkpoint) -> tuple[str, ...]:
    args = checkpoint.training_args
    name = args.get("model", args.get("MODEL.NAME"))
    return (f"trained as {some([name])}, its arguments say",) if isinstance(name, str) else ()


def _check_family(settings: Arch, dims: Dims, name: str) -> None:
    wanted, found = METHODS[settings.family], METHODS[dims.family]
    if found.name in (wanted.name, wanted.keys_of):
        return
    match = recognise(dims)
    fix = f"use --arch {match}" if match else f"use an architecture of the family {dims.family}"
    if found.modes == (TokenMode.DENSE,):
        raise InputError(
            f"the checkpoint is a plain {found.title} without gates: as {name} its gates would be "
            "random",
            f"give the fine-tuned {wanted.title} checkpoint, or {fix}",
        )
    gates = f" with {dims.num_gates} gates" if dims.num_gates else ""
    article = "an" if found.title[:1] in "AEIOS" else "a"
    raise InputError(
        f"the checkpoint is {article} {found.title}{gates}, and {name} is of the family "
        f"{settings.family}",
        fix,
    )


def _check_dims(settings: Arch, dims: Dims, name: str) -> None:
    wrong = [
        f"{field} {wanted} (the checkpoint has {getattr(dims, field)})"
        for field in ("embed_dim", "depth", "patch_size", "num_classes", "distilled")
        if (wanted := getattr(settings, field)) not in (None, getattr(dims, field))
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
    settings: Arch, dims: Dims, image_size: tuple[int, int] | None
) -> tuple[ModelConfig, tuple[str, ...]]:
    patch = dims.patch_size
    native_grid = _native_grid(settings, dims, image_size)
    native_size = (native_grid[0] * patch, native_grid[1] * patch)
    size = image_size or native_size
    notes = []
    if image_size is None and settings.image_size not in (None, native_size):
        notes.append(f"image size {size[0]}x{size[1]} taken from the weights")
    elif size != native_size and METHODS[settings.family].has_positions:
        notes.append(
            f"position embedding resized from {native_size[0]}x{native_size[1]} "
            f"to {size[0]}x{size[1]} pixels"
        )
    method = METHODS[settings.family]
    chosen = method.choose(settings.settings)
    gates = method.gates(settings, dims, chosen)
    count = len(gates.blocks)
    notes += gates.notes
    config = ModelConfig(
        family=method.name,
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
        thresholds=() if method.counted else (0.0,) * count,
        block_eps=method.eps[0],
        gate_eps=method.eps[1],
        norm_eps=method.eps[2],
        preprocess=Preprocess(
            settings.mean, settings.std, settings.crop_ratio, settings.interpolation
        ),
        settings=chosen,
        class_token=method.class_token,
    )
    return config, tuple(notes)


def _native_grid(settings: Arch, dims: Dims, image_size: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of the position embedding.

    The weights tell only their product: the architecture's image size decides if it fits, then a
    square, then the wanted image size if it fits.
    """

    def fits(size: tuple[int, int] | None) -> tuple[int, int] | None:
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
