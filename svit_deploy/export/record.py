"""What a bundle records beside its graph: metadata, manifest, the reference's outputs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from svit_deploy import __version__
from svit_deploy.config import ModelConfig
from svit_deploy.environment import describe_environment
from svit_deploy.export.settings import ExportSettings
from svit_deploy.images import ImageSet
from svit_deploy.methods import Method, method_of
from svit_deploy.models import Model, config_to_dict


def save_reference(
    path: Path, inputs: np.ndarray, samples: ImageSet, outputs: Any, method: Method
) -> None:
    arrays = {
        "images": inputs,
        "logits": outputs.logits,
        "keep_mask": outputs.keep_mask,
        "margin": outputs.margin,
    }
    if method.counted:  # else they are the same as the masks and margins
        arrays |= outputs.values
    if samples.labels is not None:
        arrays["labels"] = samples.labels
    np.savez_compressed(path, **arrays)


def describe_gates(
    config: ModelConfig, measured: Sequence[float], budgets: Sequence[int]
) -> list[dict[str, Any]]:
    """One record per gate, for the manifest, the ONNX metadata and `inspect`."""
    return [
        {
            "gate": gate,
            "block": config.gate_blocks[gate],
            "sees_class_token": config.gate_class_token[gate],
            "gated_tokens": config.gated_tokens(gate),
            "target_keep": config.target_keep[gate] if config.target_keep else None,
            "measured_keep": round(measured[gate], 6),
            "threshold": config.thresholds[gate] if config.thresholds else None,
            "budget": budgets[gate] if budgets else None,
        }
        for gate in range(config.num_gates)
    ]


def metadata(model: Model, settings: ExportSettings, gates: list[dict[str, Any]]) -> dict[str, str]:
    """metadata_props: flat strings, JSON where nested; no path and no time of day."""
    checkpoint = model.checkpoint
    content: dict[str, Any] = {
        "schema": "1",
        "version": __version__,
        "method": model.config.family,
        "arch": Path(model.arch).name,
        "mode": settings.mode.value,
        "gating": method_of(model.config).rule if gates else "none",
        "gates": gates,
        "model": config_to_dict(model.config),
        "preprocess": dataclasses.asdict(model.config.preprocess),
        "batch": str(settings.batch),
        "checkpoint_sha256": checkpoint.sha256 if checkpoint else "",
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for key, value in content.items()
    }


def manifest(
    model: Model,
    settings: ExportSettings,
    gates: list[dict[str, Any]],
    samples: ImageSet,
    budgets: Sequence[int],
    command: Sequence[str],
    engine: str | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    checkpoint = model.checkpoint
    return {
        "tool": {"name": "svit-deploy", "version": __version__},
        "command": command_record(command),
        "checkpoint": {
            "name": checkpoint.path.name,
            "sha256": checkpoint.sha256,
            "size_bytes": checkpoint.size_bytes,
            "container": checkpoint.container,
        }
        if checkpoint
        else None,
        "arch": Path(model.arch).name,
        "model": config_to_dict(model.config),
        "preprocess": dataclasses.asdict(model.config.preprocess),
        "tokens": {
            "mode": settings.mode.value,
            "budgets": list(budgets),
            "gate_outputs": settings.gate_outputs,
            "plugins": settings.plugins,
        },
        "gates": gates,
        "batch": {"min": settings.batch.min, "opt": settings.batch.opt, "max": settings.batch.max},
        "precision": settings.precision,
        "opset": settings.opset,
        "engine": engine,
        "reference": {
            "source": samples.source,
            "images": len(samples),
            "sha256": samples.sha256,
        },
        "notes": [*model.notes, *notes],
        "environment": describe_environment(),
    }


def command_record(command: Sequence[str]) -> list[str]:
    """A command line as a bundle may tell it."""
    return [_without_folders(part) for part in command]


def _without_folders(argument: str) -> str:
    """`--arch=/home/me/a.yaml` -> `--arch=a.yaml`: a bundle travels, its maker's folders do not."""
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name if '/' in value else value}"
