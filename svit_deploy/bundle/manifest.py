"""manifest.json: what it may hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svit_deploy.io.files import hash_file
from svit_deploy.io.strict_json import read_json, write_json
from svit_deploy.methods.families import family_of
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.sizes import SizeRange
from svit_deploy.names import MANIFEST
from svit_deploy.tasks import TASKS, Task, task_named

SCHEMA_VERSION = 1
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
    "model": dict,  # loading.serialise checks it
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
UNNAMED = "classify"
"""The task of a manifest that names none."""
NAMED = {**SCHEMA, "task": str}
MANY_SIZES = {
    **NAMED,
    "image": {"min": [int], "opt": [int], "max": [int]},
    "tokens": {**SCHEMA["tokens"], "budgets": [float]},
    "gates": [{**GATE, "budget": (float, None)}],
}
"""Of tasks whose images have many sizes: they tell the sizes, and budgets are shares."""


SOMETIMES: dict[str, Any] = {
    "assumed": {str: str},
    "class_names": [str],
    "quantised": {"method": str, "steps": {str: float}, "float32": [str]},
    "origin": {"id": str, "revision": str},
}
"""Keys that a manifest may lack: settings that nobody told, names of the classes, of a
quantised graph the step of each layer's inputs, and where a checkpoint came from that was not on
the disk."""


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads a manifest and checks its keys and types (`strict_json.read_json`)."""

    def schema(content: Mapping[str, Any]) -> Mapping[str, Any]:
        name, wanted = content.get("task"), MANY_SIZES
        task = TASKS.get(name) if isinstance(name, str) else None
        if name is None:
            wanted = SCHEMA
        elif task is not None and not task.many_sizes:
            wanted = NAMED
        return {**wanted, **{key: kind for key, kind in SOMETIMES.items() if key in content}}

    return read_json(path, schema, SCHEMA_VERSION, EXPORT_AGAIN)


def task_of(manifest: Mapping[str, Any]) -> Task:
    """The task that a manifest is of; raises UsageError for one that is unknown."""
    return task_named(manifest.get("task", UNNAMED))


def sizes_of(manifest: Mapping[str, Any], config: ModelConfig, task: Task) -> SizeRange:
    """The image sizes that a manifest tells of; raises UsageError for impossible ones."""
    if not task.many_sizes:
        return task.sizes(config, None)
    sides = (manifest["image"][name] for name in ("min", "opt", "max"))
    text = ":".join("x".join(map(str, size)) for size in sides)
    return SizeRange.parse(text, family_of(config).backbone.step or config.patch_size)


def check_twice_told(manifest: Mapping[str, Any], config: ModelConfig) -> None:
    """Raises ValueError where what other programs read is not what the model's own entry says.

    Args:
        config: of the model's entry, with as many gates as are described.
    """
    if manifest["preprocess"] != manifest["model"]["preprocess"]:
        raise ValueError("the preprocessing is told twice, and differently")
    budgets = manifest["tokens"]["budgets"]
    for gate, told in enumerate(manifest["gates"]):
        known = {
            "gate": gate,
            "block": config.gate_blocks[gate],
            "sees_class_token": config.gate_class_token[gate],
            "gated_tokens": config.gated_tokens(gate),
            "target_keep": config.target_keep[gate] if config.target_keep else None,
            "threshold": config.thresholds[gate] if config.thresholds else None,
            "budget": budgets[gate] if budgets else None,
        }
        for name, value in known.items():
            if told[name] != value:
                raise ValueError(f"gate {gate} has {name} {told[name]} and {value}")


def describe_task(task: Task, sizes: SizeRange) -> dict[str, Any]:
    """What a manifest says of task and sizes; nothing of a task that needs no word."""
    named = {} if task.name == UNNAMED else {"task": task.name}
    image = {name: list(getattr(sizes, name)) for name in ("min", "opt", "max")}
    return {**named, "image": image} if task.many_sizes else named


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes manifest.json, last, with size and sha256 of every file in the folder."""
    files = {
        file.name: {"size_bytes": file.stat().st_size, "sha256": hash_file(file)}
        for file in sorted(folder.iterdir())
    }
    write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, **content, "files": files})
