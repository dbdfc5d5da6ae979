"""manifest.json: what it may hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svit_deploy.files import hash_file
from svit_deploy.strict_json import read_json, write_json

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
EXPORT_AGAIN = "run the export again"

GATE = {
    "gate": int,
    "block": int,
    "sees_class_token": bool,
    "gated_tokens": int,
    "target_keep": (float, None),
    "measured_keep": float,
    "threshold": (float, None),
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
    "tokens": {"mode": str, "budgets": [int], "gate_outputs": bool, "plugins": bool},
    "gates": [GATE],
    "batch": {"min": int, "opt": int, "max": int},
    "precision": str,
    "opset": int,
    "engine": (str, None),
    "reference": {"source": str, "images": int, "sha256": str},
    "notes": [str],
    "environment": dict,
    "files": {str: {"size_bytes": int, "sha256": str}},
}
DETECTION_SCHEMA = {
    **SCHEMA,
    "task": str,
    "image": {"min": [int], "opt": [int], "max": [int]},
    "tokens": {**SCHEMA["tokens"], "budgets": [float]},
    "gates": [{**GATE, "budget": (float, None)}],
}


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads a manifest and checks its keys and types (`strict_json.read_json`)."""

    def schema(content: Mapping[str, Any]) -> Mapping[str, Any]:
        return DETECTION_SCHEMA if "task" in content else SCHEMA

    return read_json(path, schema, SCHEMA_VERSION, EXPORT_AGAIN)


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes manifest.json, last, with size and sha256 of every file in the folder."""
    files = {
        file.name: {"size_bytes": file.stat().st_size, "sha256": hash_file(file)}
        for file in sorted(folder.iterdir())
    }
    write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, **content, "files": files})
