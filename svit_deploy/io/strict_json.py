"""Reading a JSON file of our own when nobody vouches for it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from svit_deploy.errors import InputError
from svit_deploy.io.files import reading

MAX_BYTES = 4 * 2**20
_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false",
          dict: "an object", list: "a list"}  # fmt: skip


def read_json(
    path: Path,
    schema: Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]],
    version: int,
    again: str,
) -> dict[str, Any]:
    """Reads an object and checks its keys and types; paths and values are the caller's to check.

    Args:
        schema: what each key holds: a type; (type, None) for a value or null; [type] for a list;
            or an object with exactly these keys, {str: type} with any keys. Where there are
            several kinds of file, a function that tells it by the object found.
        version: the newest `schema_version` understood.
        again: what to do about a damaged file.

    Raises:
        InputError: unreadable, a link, too large, not JSON, written by a newer version, or with
            missing, unknown or repeated keys or values of another type.
    """
    if path.is_symlink():
        raise InputError(f"{path} is a link", "copy the folder with the files themselves")
    with reading(path), path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES} bytes", again)
    try:
        found = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_finite,
        )
        written = found.get("schema_version") if isinstance(found, dict) else None
        if type(written) is int and written > version:
            raise InputError(
                f"{path} was written by a newer version: its schema is above {version}",
                "upgrade svit-deploy",
            )
        if callable(schema):
            schema = schema(found if isinstance(found, dict) else {})
        _check(found, schema, "")
    except (ValueError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"{path} is damaged ({reason})", again) from None
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object; a file name in it that is not valid Unicode loses those characters."""
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    path.write_bytes(text.encode("utf-8", errors="replace"))


def _check(value: Any, wanted: Any, where: str) -> None:
    """Raises ValueError unless `value`, at the keys `where`, is as `wanted` says."""
    if isinstance(wanted, tuple):
        if value is None:
            return
        wanted = wanted[0]
    kind: Any = wanted if isinstance(wanted, type) else type(wanted)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"{where or 'it'!r:.100} is not {_NAMES[kind]}")
    if isinstance(wanted, list):
        for position, item in enumerate(value):
            _check(item, wanted[0], f"{where}[{position}]")
    elif isinstance(wanted, dict):
        expected = dict.fromkeys(value, wanted[str]) if str in wanted else wanted
        for key in (*expected, *value):
            name = f"{where}.{key}" if where else key
            if key not in value or key not in expected:
                raise ValueError(f"{name!r:.100} is {'unknown' if key in value else 'missing'}")
            _check(value[key], expected[key], name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return content


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text:.20} is not a finite number")
    return float(text)


def _whole(text: str) -> int:
    if len(text) > 18:
        raise ValueError(f"{text[:20]}... is too large")
    return int(text)
