"""The rules that a model's configuration keeps, and its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, get_args, get_origin, get_type_hints

from svit_deploy.config import ModelConfig, Preprocess, check_ratios
from svit_deploy.detection.config import FAMILIES as ADAPTERS
from svit_deploy.detection.config import AdapterConfig
from svit_deploy.errors import InputError

FAMILIES = ("svit", "deit", *ADAPTERS)


def check_config(config: ModelConfig) -> None:
    """Refuses a configuration that no forward pass can have.

    Raises:
        InputError: a count below 1, heads that do not divide the width, an image that patches do
            not tile, gates out of order or range, or a value per gate missing.
        UsageError: a keep ratio outside (0, 1].
    """
    if config.family not in FAMILIES:
        raise InputError(
            f"family {config.family!r} is unknown", f"use one of {', '.join(FAMILIES)}"
        )
    names = ["embed_dim", "depth", "num_heads", "mlp_dim", "patch_size", "num_classes"]
    if isinstance(config, AdapterConfig):
        _check_adapter(config)
        names = names if config.has_heads else names[:-1]
    for name in names:
        if getattr(config, name) < 1:
            raise InputError(f"{name} is {getattr(config, name)}", "give a complete checkpoint")
    if config.embed_dim % config.num_heads:
        raise InputError(
            f"embed_dim {config.embed_dim} is not divisible by num_heads {config.num_heads}",
            "give the number of heads that the model was trained with: --set num_heads=NUMBER",
        )
    if min(config.native_grid) < 1:
        raise InputError(f"the grid {config.native_grid} is empty", "give a complete checkpoint")
    patch = config.patch_size
    if any(side < patch or side % patch for side in config.image_size):
        height, width = (max(side // patch, 1) * patch for side in config.image_size)
        raise InputError(
            f"image size {config.image_size[0]}x{config.image_size[1]} is not a multiple of the "
            f"patch size {patch}",
            f"use, for example, {height}x{width}",
        )
    _check_gates(config)


def _check_gates(config: ModelConfig) -> None:
    blocks = config.gate_blocks
    if config.family in ("deit", "vit_adapter") and blocks:
        raise InputError(
            f"a {config.family} has no gates", "leave gate_blocks out, or use an svit arch"
        )
    if list(blocks) != sorted(set(blocks)) or not all(0 <= b < config.depth for b in blocks):
        raise InputError(
            f"gate_blocks {list(blocks)} are not ascending block numbers below {config.depth}",
            "blocks count from 0: --set gate_blocks=3,4,5",
        )
    for name in ("gate_class_token", "thresholds"):
        if len(getattr(config, name)) != len(blocks):
            raise InputError(
                f"{name} has {len(getattr(config, name))} values for {len(blocks)} gates",
                "give one per gate",
            )
    if len(config.target_keep) not in (0, len(blocks)):
        raise InputError(
            f"target_keep has {len(config.target_keep)} values for {len(blocks)} gates",
            "give one per gate, or none",
        )
    check_ratios(config.target_keep, "target_keep")


def _check_adapter(config: AdapterConfig) -> None:
    """Refuses what no ViT-Adapter can have."""
    for name in ("conv_dim", "deform_heads", "deform_points", "deform_dim", "ffn_dim"):
        if getattr(config, name) < 1:
            raise InputError(f"{name} is {getattr(config, name)}", "give a complete checkpoint")
    if config.deform_dim % config.deform_heads:
        raise InputError(
            f"deform_dim {config.deform_dim} is not divisible by deform_heads "
            f"{config.deform_heads}",
            "give the number that the model was trained with: --set deform_heads=NUMBER",
        )
    blocks = config.interaction_blocks
    if not blocks or min(blocks) < 1 or sum(blocks) != config.depth:
        raise InputError(
            f"interaction_blocks {list(blocks)} do not share out {config.depth} blocks",
            "give the blocks of each interaction: --set interaction_blocks=3,3,3,3",
        )
    if config.patch_size != 16:  # the map beside the convolutions' second one, of stride 16
        raise InputError(
            f"patch_size is {config.patch_size}", "give a ViT-Adapter of patch size 16"
        )


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """A dictionary of plain JSON values: lists in the place of tuples."""
    return _plain(asdict(config))


def config_from_dict(content: Mapping[str, Any]) -> ModelConfig:
    """The inverse of `config_to_dict`, for content that may come from anywhere.

    Raises:
        InputError: a field is missing, unknown or of another type, or `check_config` refuses.
        UsageError: a keep ratio outside (0, 1].
    """
    adapter = isinstance(content, Mapping) and content.get("family") in ADAPTERS
    config = _build(AdapterConfig if adapter else ModelConfig, content, "model configuration")
    check_config(config)
    return config


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _build(kind: type, content: Any, where: str) -> Any:
    """A dataclass out of a dictionary that names each of its fields, and no other."""
    names = {field.name for field in fields(kind)}
    wrong = sorted(map(str, names ^ set(content))) if isinstance(content, Mapping) else ["fields"]
    if wrong:
        raise InputError(f"the {where} lacks or adds {', '.join(wrong)}", "export the model again")
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], content[name], name) for name in names})


def _value(hint: Any, value: Any, name: str) -> Any:
    if hint is Preprocess:
        return _build(Preprocess, value, name)
    if get_origin(hint) is tuple:
        item, last = get_args(hint)
        if isinstance(value, list) and (last is Ellipsis or len(value) == 2):
            return tuple(_value(item, entry, name) for entry in value)
    elif type(value) is hint or (hint is float and type(value) is int):
        return hint(value)
    raise InputError(f"{name} of the model configuration is {value!r}", "export the model again")
