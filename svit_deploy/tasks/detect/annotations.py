"""Reading annotations in COCO's format, of which anybody may have written the file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from svit_deploy.errors import InputError

FIX = "correct it, or give a file such as instances_val2017.json"
MAX_SIDE = 2**16 - 1
MAX_OUTLINE = 10**6
"""Pixels: how far off a polygon's points may be, and how long all of its edges."""


def read_annotations(path: Path, *, objects: bool = True) -> dict[str, Any]:
    """COCO's images, categories and annotations, checked as far as average precision needs them.

    An annotation without `iscrowd` is of one object. Their own ids mean nothing here, and counting
    from 0 or twice the same would mislead pycocotools: they are numbered anew.

    Args:
        objects: whether to read what is annotated; else images and categories are enough, as in
            image_info_test-dev2017.json.

    Raises:
        InputError: not such a file; the sentence names the first entry at fault.
    """
    try:
        content = json.loads(path.read_bytes())
        images, categories = (_entries(content, name) for name in ("images", "categories"))
        annotations = _entries(content, "annotations") if objects else []
        sizes = _check_images(images)
        known = _ids(categories, "categories")
        for number, entry in enumerate(annotations):
            _check_annotation(entry, f"annotations[{number}]", sizes, known)
            entry["id"] = number + 1
            entry.setdefault("iscrowd", 0)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "check it") from None
    except (ValueError, RecursionError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is no COCO annotation file ({reason})", FIX) from None
    return {"images": images, "categories": categories, "annotations": annotations}


def _entries(content: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(content, dict):
        raise ValueError("it is not an object")
    if name not in content:
        raise ValueError(f"it lacks {name!r}")
    entries = content[name]
    if not isinstance(entries, list):
        raise ValueError(f"{name!r} is not a list")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{name}[{number}] is not an object")
    return entries


def _check_images(images: list[dict[str, Any]]) -> dict[int, tuple[int, int]]:
    """(height, width) by id."""
    names: set[str] = set()
    for number, entry in enumerate(images):
        where = f"images[{number}]"
        name = _field(entry, where, "file_name", lambda v: isinstance(v, str), "a file's name")
        if name in names:
            raise ValueError(f"{where}.file_name {name!r:.100} stands there twice")
        names.add(name)
        for side in ("height", "width"):
            _field(entry, where, side, _is_side, "a number of pixels")
    ids = _ids(images, "images")
    return {i: (e["height"], e["width"]) for i, e in zip(ids, images, strict=True)}


def _ids(entries: list[dict[str, Any]], group: str) -> list[int]:
    found: dict[int, None] = {}
    for number, entry in enumerate(entries):
        where = f"{group}[{number}]"
        if _field(entry, where, "id", _is_id, "a whole number") in found:
            raise ValueError(f"{where}.id {entry['id']} stands there twice")
        found[entry["id"]] = None
    return list(found)


def _check_annotation(
    entry: dict[str, Any], where: str, sizes: Mapping[int, tuple[int, int]], known: Collection[int]
) -> None:
    for key, ids, group in (("image_id", sizes, "images"), ("category_id", known, "categories")):
        if _field(entry, where, key, _is_id, "a whole number") not in ids:
            raise ValueError(f"{where}.{key} {entry[key]} is the id of none of the {group}")
    _field(entry, where, "bbox", _is_box, "four numbers: x, y, width, height")
    _field(entry, where, "area", lambda v: _is_number(v) and v >= 0, "a number of pixels")
    size = sizes[entry["image_id"]]
    outline = "polygons [[x, y, x, y, x, y, ...]], or an RLE of the image's height and width"
    _field(entry, where, "segmentation", lambda v: _is_outline(v, size), outline)
    if "iscrowd" in entry:
        _field(entry, where, "iscrowd", lambda v: _is_id(v) and v in (0, 1), "0 or 1")


def _field(
    entry: Mapping[str, Any], where: str, key: str, fits: Callable[[Any], bool], wanted: str
) -> Any:
    if key not in entry:
        raise ValueError(f"{where} lacks {key!r}")
    if not fits(entry[key]):
        raise ValueError(f"{where}.{key} is {entry[key]!r:.60}, not {wanted}")
    return entry[key]


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_side(value: Any) -> bool:
    return _is_id(value) and 0 < value <= MAX_SIDE


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_box(value: Any) -> bool:
    is_four = isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))
    return is_four and min(value[2:]) >= 0


def _is_outline(value: Any, size: tuple[int, int]) -> bool:
    """Whether pycocotools may read it: its native code trusts lengths and coordinates."""
    if isinstance(value, list):
        return bool(value) and all(map(_is_polygon, value))
    if not isinstance(value, dict) or value.get("size") != list(size):
        return False
    counts = value.get("counts")
    if isinstance(counts, str):
        counts = _lengths(counts)
    if not isinstance(counts, list):
        return False
    return all(_is_id(n) and n >= 0 for n in counts) and sum(counts) == size[0] * size[1]


def _lengths(text: str) -> list[int] | None:
    """The runs of a compressed RLE; None if it is none or ends within a number.

    A number is five bits a character from `0` on, the lowest first, and a sixth if more follow;
    from the fourth on it is the difference from the last run but one.
    """
    runs: list[int] = []
    value = bits = 0
    for code in (ord(character) - 48 for character in text):
        if not 0 <= code < 64 or bits > 30:
            return None
        value, bits = value | (code & 31) << bits, bits + 5
        if not code & 32:
            value -= (code & 16) >> 4 << bits
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = bits = 0
    return None if bits else runs


def _is_polygon(value: Any) -> bool:
    is_list = isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0
    if not (is_list and all(_is_number(v) and abs(v) <= MAX_OUTLINE for v in value)):
        return False
    points = list(zip(value[::2], value[1::2], strict=True))
    edges = zip(points, [*points[1:], points[0]], strict=True)
    return sum(max(abs(x - u), abs(y - v)) for (x, y), (u, v) in edges) <= MAX_OUTLINE
