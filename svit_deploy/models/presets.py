"""What weights cannot tell about a model: presets, architecture files, single settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from svit_deploy.config import IMAGENET_MEAN, IMAGENET_STD, parse_image_size
from svit_deploy.errors import InputError, UsageError
from svit_deploy.methods import METHODS
from svit_deploy.methods.keys import Dims


@dataclass(frozen=True)
class Arch:
    """An architecture. `None` or an empty tuple means: as the weights tell, or the default.

    Gates stand in front of the last blocks by default, and only the last gate may prune the class
    token. `image_size` is (height, width), `settings` are values of the method's own settings.
    """

    family: str
    num_heads: int
    embed_dim: int | None = None
    depth: int | None = None
    patch_size: int | None = None
    image_size: tuple[int, int] | None = None
    num_classes: int | None = None
    distilled: bool | None = None
    gate_blocks: tuple[int, ...] = ()
    gate_class_token: tuple[bool, ...] = ()
    target_keep: tuple[float, ...] = ()
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_ratio: float = 0.875
    interpolation: str = "bicubic"
    settings: Mapping[str, Any] = field(default_factory=dict)


def _deit(num_heads: int, image_size: int = 224, distilled: bool = False) -> Arch:
    """DeiT's sizes differ by the number of heads, each 64 wide."""
    size = (image_size, image_size)
    return Arch("deit", num_heads, 64 * num_heads, 12, 16, size, distilled=distilled)


def _on_deit(family: str, num_heads: int, **settings: Any) -> Arch:
    """A method on a DeiT of 224 pixels, with its published settings."""
    return replace(_deit(num_heads), family=family, settings=settings)


def _swin(family: str, embed_dim: int, third_stage: int) -> Arch:
    """Swin's sizes differ by the width, in heads of 32, and the depth of the third stage."""
    depths = (2, 2, third_stage, 2)
    return Arch(
        family,
        embed_dim // 32,
        embed_dim,
        sum(depths),
        4,
        (224, 224),
        distilled=False,
        settings={"depths": depths},
        crop_ratio=224 / 256,
    )


def _adapter(num_heads: int, gated: bool) -> Arch:
    """A ViT-Adapter in front of Mask R-CNN; `gated` for SViT's."""
    return Arch(
        family="svit_adapter" if gated else "vit_adapter",
        num_heads=num_heads,
        embed_dim=64 * num_heads,
        depth=12,
        patch_size=16,
        distilled=False,
        gate_blocks=tuple(range(3, 12)) if gated else (),
        gate_class_token=(True,) * 9 if gated else (),
        target_keep=(0.7,) * 3 + (0.49,) * 3 + (0.343,) * 3 if gated else (),
        crop_ratio=1.0,
        interpolation="bilinear",
    )


PRESETS: dict[str, Arch] = {
    "svit_s": Arch(
        family="svit",
        num_heads=6,
        embed_dim=384,
        depth=12,
        patch_size=16,
        image_size=(224, 224),
        distilled=False,
        gate_blocks=(3, 4, 5, 6, 7, 8, 9, 10, 11),
        gate_class_token=(False,) * 8 + (True,),
        target_keep=(0.7,) * 3 + (0.49,) * 3 + (0.343,) * 3,
    ),
    "deit_tiny": _deit(3),
    "deit_small": _deit(6),
    "deit_base": _deit(12),
    "deit_tiny_distilled": _deit(3, distilled=True),
    "deit_small_distilled": _deit(6, distilled=True),
    "deit_base_distilled": _deit(12, distilled=True),
    "deit_base_384": _deit(12, image_size=384),
    "dynamicvit_256": _on_deit("dynamicvit", 4, base_rate=0.7),
    "dynamicvit_s": _on_deit("dynamicvit", 6, base_rate=0.7),
    "dynamicvit_b": _on_deit("dynamicvit", 12, base_rate=0.7),
    "evit_s": _on_deit("evit", 6, keep_rate=0.7, fuse=True),
    "evovit_t": _on_deit("evovit", 3),
    "evovit_s": _on_deit("evovit", 6),
    "evovit_b": _on_deit("evovit", 12),
    "ats_s": _on_deit("ats", 6),
    "tome_t": _on_deit("tome", 3, r=(13,)),
    "tome_s": _on_deit("tome", 6, r=(13,)),
    "mergence_t": _on_deit("mergence", 3, keep_rate=0.7),
    "mergence_s": _on_deit("mergence", 6, keep_rate=0.7),
    "mergence_b": _on_deit("mergence", 12, keep_rate=0.7),
    "stvit_t": _on_deit("stvit", 3, semantic=16),
    "stvit_s": _on_deit("stvit", 6, semantic=16),
    "stvit_b": _on_deit("stvit", 12, semantic=16),
    "swin_t": _swin("swin", 96, 6),
    "swin_s": _swin("swin", 96, 18),
    "swin_b": _swin("swin", 128, 18),
    "stvitr_s": _swin("stvitr", 96, 18),
    "stvitr_b": _swin("stvitr", 128, 18),
    "svit_adapter_t": _adapter(3, gated=True),
    "svit_adapter_s": _adapter(6, gated=True),
    "vit_adapter_t": _adapter(3, gated=False),
    "vit_adapter_s": _adapter(6, gated=False),
}


def _whole(value: Any) -> int:
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ValueError
    return int(value)


def _count(value: Any) -> int:
    if _whole(value) < 1:
        raise ValueError
    return _whole(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _boolean(value: Any) -> bool:
    return {"true": True, "false": False}[str(value).strip().lower()]


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value.strip()


def _family(value: Any) -> str:
    if (name := _word(value)) not in METHODS:
        raise ValueError
    return name


def _list(parse: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def parse_list(value: Any) -> tuple[Any, ...]:
        items = value.split(",") if isinstance(value, str) else value
        return tuple(parse(item) for item in (items if isinstance(items, list) else [items]))

    return parse_list


def _size(value: Any) -> tuple[int, int]:
    return parse_image_size("x".join(map(str, value if isinstance(value, list) else [value])))


_COUNT = (_count, "a whole number of at least 1")
_NUMBERS = (_list(_number), "numbers with commas between them")
_FIELDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "family": (_family, f"one of {', '.join(METHODS)}"),
    "num_heads": _COUNT,
    "embed_dim": _COUNT,
    "depth": _COUNT,
    "patch_size": _COUNT,
    "image_size": (_size, "pixels, such as 224 or 224x320"),
    "num_classes": _COUNT,
    "distilled": (_boolean, "true or false"),
    "gate_blocks": (_list(_whole), "whole numbers with commas between them"),
    "gate_class_token": (_list(_boolean), "true or false, with commas between them"),
    "target_keep": _NUMBERS,
    "mean": _NUMBERS,
    "std": _NUMBERS,
    "crop_ratio": (_number, "a number"),
    "interpolation": (_word, "nearest, bilinear or bicubic"),
}
_KINDS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    bool: (_boolean, "true or false"),
    int: (_whole, "a whole number"),
    float: (_number, "a number"),
}


def _settings_fields() -> dict[str, tuple[Callable[[Any], Any], str]]:
    """How the settings of all methods are parsed; equal names have equal types."""
    found = {}
    for method in METHODS.values():
        if method.settings is None:
            continue
        hints = get_type_hints(method.settings)
        for name in (entry.name for entry in fields(method.settings)):
            hint = hints[name]
            if hint in _KINDS:
                found[name] = _KINDS[hint]
            else:
                parse, description = _KINDS[get_args(hint)[0]]
                found[name] = (_list(parse), f"{description}, or several with commas between them")
    return found


_SETTINGS = _settings_fields()


def parse_overrides(overrides: Mapping[str, str]) -> dict[str, Any]:
    """The values of `--set key=value`, each as its field's type.

    Raises:
        UsageError: an unknown key, or a value of another type.
    """
    return {key: _parse(key, text, "--set ", UsageError) for key, text in overrides.items()}


def find_arch(name: str) -> tuple[str, Arch]:
    """A preset by name, or an architecture file by path, with the name to show for it.

    Raises:
        UsageError: neither a preset nor a file.
        InputError: the file is not a flat YAML mapping of an Arch's fields.
    """
    if name in PRESETS:
        return name, PRESETS[name]
    path = Path(name)
    if not path.is_file():
        raise UsageError(
            f"--arch {name!r} is neither a known architecture nor a file",
            f"use one of {', '.join(PRESETS)}, or the path of a YAML file",
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not readable YAML ({reason})", "correct the file") from None
    lines = content if isinstance(content, dict) else {}
    if missing := [key for key in ("family", "num_heads") if key not in lines]:
        raise InputError(
            f"{path} lacks the field {' and '.join(missing)}",
            "write one 'field: value' per line, for example 'num_heads: 6'",
        )
    for key, value in lines.items():  # before anything prints it: aliases nest without end
        if any(
            isinstance(item, list | dict) for item in (value if type(value) is list else [value])
        ):
            raise InputError(f"{path}: {key!s:.80} is nested", "give a value, or a list of values")
    values = {key: _parse(key, value, f"{path}: ", InputError) for key, value in lines.items()}
    return path.name, _arch(values)


def _arch(values: Mapping[str, Any], base: Arch | None = None) -> Arch:
    """An architecture of fields and settings by name, over those of `base`."""
    plain = {key: value for key, value in values.items() if key in _FIELDS}
    settings = {key: value for key, value in values.items() if key not in _FIELDS}
    if base is None:
        return Arch(**plain, settings=settings)
    if plain.get("family", base.family) == base.family:
        settings = {**base.settings, **settings}
    return replace(base, **plain, settings=settings)


def recognise(dims: Dims, family: str | None = None) -> str | None:
    """The preset with these dimensions, if there is one; of two, the one with this image size.

    Args:
        family: the method to run; by default the one whose keys the weights have.
    """
    sizes = (dims.embed_dim, dims.depth, dims.patch_size, dims.distilled)
    matches = [
        name
        for name, arch in PRESETS.items()
        if arch.family == (family or dims.family)
        and (arch.embed_dim, arch.depth, arch.patch_size, arch.distilled) == sizes
        and (not arch.gate_blocks or len(arch.gate_blocks) == dims.num_gates)
    ]

    def same_size(name: str) -> bool:
        height, width = PRESETS[name].image_size or (0, 0)
        return height * width == dims.num_patches * dims.patch_size**2

    return max(matches, key=same_size, default=None)


def resolve_arch(
    arch: str | None, overrides: Mapping[str, str], dims: Dims
) -> tuple[Arch, str, tuple[str, ...]]:
    """Chooses the architecture: what the user named, else the preset that the weights match.

    Args:
        arch: a preset's name, a YAML file's path, or None.
        overrides: `--set` values, which win over everything else.
        dims: what the weights tell.

    Returns:
        The architecture, its name ("custom" when only `overrides` make it), and notes on what was
        assumed.

    Raises:
        UsageError: an unknown name, key or value.
        InputError: a bad architecture file, or no preset matches and num_heads is unknown.
    """
    values = parse_overrides(overrides)
    notes: tuple[str, ...] = ()
    if arch is None:
        arch = recognise(dims, values.get("family")) or recognise(dims)
        notes = (f"recognised as {arch} by its dimensions",) if arch else ()
        if arch:  # its settings are a choice that nobody made
            found = replace(PRESETS[arch], settings={})
            return _arch(values, found), arch, notes
    else:
        name, found = find_arch(arch)
        return _arch(values, found), name, notes
    if "num_heads" not in values and not dims.num_heads:
        raise InputError(
            f"the weights ({dims}) match no known architecture, and do not tell num_heads",
            f"give --arch ({', '.join(PRESETS)}, or a YAML file) or --set num_heads=NUMBER",
        )
    heads = {"family": dims.family, "num_heads": dims.num_heads}
    return _arch({**heads, **values}), "custom", notes


def _parse(key: Any, value: Any, where: str, error: type[UsageError] | type[InputError]) -> Any:
    known = _FIELDS | _SETTINGS
    if key not in known:
        raise error(f"{where}{key} is unknown", f"use one of {', '.join(known)}")
    parse, description = known[key]
    try:
        return parse(value)
    except (ValueError, TypeError, KeyError, OverflowError, UsageError):
        raise error(f"{where}{key}={value!s:.80} has a bad value", f"give {description}") from None
