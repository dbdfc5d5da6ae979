"""manifest.json: what it may hold, and reading it when nobody vouches for it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svit_deploy.errors import InputError
from svit_deploy.files import hash_file

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MAX_BYTES = 4 * 2**20
EXPORT_AGAIN = "run the export again"

# What each key holds: a type; (type, None) for a value or null; [type] for a list; or an object
# with exactly these keys, {str: type} with any keys.
GATE = {
    "gate": int,
    "block": int,
    "sees_class_token": bool,
    "gated_tokens": int,
    "target_keep": (float, None),
    "measured_keep": float,
    "threshold": float,
    "budget": (int, None),
}
SCHEMA: dict[str, Any] = {
    "schema_version": int,
    "tool": {"name": str, "version": str},
    "command": [str],
    "checkpoint": ({"name": str, "sha256": str, "size_bytes": int, "container": str}, None),
    "arch": str,
    "model": dict,  # models.serialise checks it
    "preprocess": dict,
    "tokens": {"mode": str, "budgets": [int], "gate_outputs": bool},
    "gates": [GATE],
    "batch": {"min": int, "opt": int, "max": int},
    "precision": str,
    "opset": int,
    "reference": {"source": str, "images": int, "sha256": str},
    "notes": [str],
    "environment": dict,
    "files": {str: {"size_bytes": int, "sha256": str}},
}
DETECTION_SCHEMA = {
    **SCHEMA,
    "task": str,
    "image": {"min": [int], "opt": [int], "max": [int]},
    "tokens": {"mode": str, "budgets": [float], "gate_outputs": bool},
    "gates": [{**GATE, "budget": (float, None)}],
}
_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false",
          dict: "an object", list: "a list"}  # fmt: skip


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads a manifest and checks its keys and types; paths and values are the caller's to check.

    Raises:
        InputError: unreadable, a link, too large, not JSON, written by a newer version, or with
            missing, unknown or repeated keys or values of another type.
    """
    if path.is_symlink():
        raise InputError(f"{path} is a link", "copy the bundle with the files themselves")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror})", "check who may read it"
        ) from None
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES} bytes", EXPORT_AGAIN)
    try:
        manifest = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_finite,
        )
        version = manifest.get("schema_version") if isinstance(manifest, dict) else None
        if type(version) is int and version > SCHEMA_VERSION:
            raise InputError(
                f"{path} was written by a newer version: its schema is above {SCHEMA_VERSION}",
                "upgrade svit-deploy",
            )
        detection = isinstance(manifest, dict) and "task" in manifest
        _check(manifest, DETECTION_SCHEMA if detection else SCHEMA, "")
    except (ValueError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"{path} is damaged ({reason})", EXPORT_AGAIN) from None
    return manifest


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes manifest.json, last, with size and sha256 of every file in the folder."""
    files = {
        file.name: {"size_bytes": file.stat().st_size, "sha256": hash_file(file)}
        for file in sorted(folder.iterdir())
    }
    manifest = {"schema_version": SCHEMA_VERSION, **content, "files": files}
    text = json.dumps(manifest, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    # A file name that is not valid Unicode, in the command, must not end a whole export.
    (folder / MANIFEST).write_bytes(text.encode("utf-8", errors="replace"))


def _check(value: Any, wanted: Any, where: str) -> None:
    """Raises ValueError unless `value`, at the keys `where`, is as `wanted` says (see SCHEMA)."""
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
