"""What weights cannot tell about a model: presets, architecture files, single settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from svit_deploy.config import IMAGENET_MEAN, IMAGENET_STD, parse_image_size
from svit_deploy.errors import InputError, UsageError
from svit_deploy.models.layout import Dims


@dataclass(frozen=True)
class Arch:
    """An architecture. `None` or an empty tuple means: as the weights tell, or the default.

    Gates stand in front of the last blocks by default, and only the last gate may prune the class
    token. `image_size` is (height, width). `deform_heads` and `interaction_blocks`, the ViT blocks
    of each interaction (equal shares by default), are for adapters alone.
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
    deform_heads: int = 6
    interaction_blocks: tuple[int, ...] = ()
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_ratio: float = 0.875
    interpolation: str = "bicubic"


def _deit(num_heads: int, image_size: int = 224, distilled: bool = False) -> Arch:
    """DeiT's sizes differ by the number of heads, each 64 wide."""
    size = (image_size, image_size)
    return Arch("deit", num_heads, 64 * num_heads, 12, 16, size, distilled=distilled)


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
    "family": (_word, "svit, deit, svit_adapter or vit_adapter"),
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
    "deform_heads": _COUNT,
    "interaction_blocks": (_list(_count), "whole numbers with commas between them"),
    "mean": _NUMBERS,
    "std": _NUMBERS,
    "crop_ratio": (_number, "a number"),
    "interpolation": (_word, "nearest, bilinear or bicubic"),
}


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
    fields = content if isinstance(content, dict) else {}
    if missing := [key for key in ("family", "num_heads") if key not in fields]:
        raise InputError(
            f"{path} lacks the field {' and '.join(missing)}",
            "write one 'field: value' per line, for example 'num_heads: 6'",
        )
    for key, value in fields.items():  # before anything prints it: aliases nest without end
        if any(
            isinstance(item, list | dict) for item in (value if type(value) is list else [value])
        ):
            raise InputError(f"{path}: {key!s:.80} is nested", "give a value, or a list of values")
    return path.name, Arch(**{k: _parse(k, v, f"{path}: ", InputError) for k, v in fields.items()})


def recognise(dims: Dims) -> str | None:
    """The preset with these dimensions, if there is one; of two, the one with this image size."""
    matches = [
        name
        for name, arch in PRESETS.items()
        if (arch.family, arch.embed_dim, arch.depth, arch.patch_size, arch.distilled)
        == (dims.family, dims.embed_dim, dims.depth, dims.patch_size, dims.distilled)
        and len(arch.gate_blocks) == dims.num_gates
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
        arch = recognise(dims)
        notes = (f"recognised as {arch} by its dimensions",) if arch else ()
    if arch is not None:
        name, found = find_arch(arch)
        return replace(found, **values), name, notes
    if "num_heads" not in values:
        raise InputError(
            f"the weights ({dims}) match no known architecture, and do not tell num_heads",
            f"give --arch ({', '.join(PRESETS)}, or a YAML file) or --set num_heads=NUMBER",
        )
    return Arch(**{"family": dims.family, **values}), "custom", notes


def _parse(key: Any, value: Any, where: str, error: type[UsageError] | type[InputError]) -> Any:
    if key not in _FIELDS:
        raise error(f"{where}{key} is unknown", f"use one of {', '.join(_FIELDS)}")
    parse, description = _FIELDS[key]
    try:
        return parse(value)
    except (ValueError, TypeError, KeyError, OverflowError, UsageError):
        raise error(f"{where}{key}={value} has a bad value", f"give {description}") from None
