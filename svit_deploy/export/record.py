"""What a bundle records beside its graph: metadata and manifest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from svit_deploy import __version__
from svit_deploy.export.quantised import Quantised
from svit_deploy.export.settings import ExportSettings
from svit_deploy.export.shapes import whole_batch
from svit_deploy.images import ImageSet
from svit_deploy.io.hub import is_id
from svit_deploy.loading.serialise import config_to_dict
from svit_deploy.machine.environment import describe_environment
from svit_deploy.methods.families import family_of
from svit_deploy.model.assumption import typed
from svit_deploy.model.budget import Budget
from svit_deploy.model.class_names import ClassNames
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.model import Model
from svit_deploy.tasks import task_named


def describe_gates(
    config: ModelConfig, measured: Sequence[float], budgets: Sequence[Budget]
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
            "budget": budgets[gate].value if budgets else None,
        }
        for gate in range(config.num_gates)
    ]


def metadata(
    model: Model,
    settings: ExportSettings,
    gates: list[dict[str, Any]],
    extra: Mapping[str, Any],
) -> dict[str, str]:
    """metadata_props: flat strings, JSON where nested; no path and no time of day.

    Args:
        extra: what the manifest says of the task and its image sizes.
    """
    checkpoint = model.checkpoint
    content: dict[str, Any] = {
        "schema": "1",
        "version": __version__,
        "method": model.config.family,
        "arch": Path(model.arch).name,
        "mode": settings.mode.value,
        "gating": family_of(model.config).method.rule if gates else "none",
        "gates": gates,
        "model": config_to_dict(model.config),
        "preprocess": dataclasses.asdict(model.config.preprocess),
        "batch": str(whole_batch(settings, task_named(settings.task))),
        "checkpoint_sha256": checkpoint.sha256 if checkpoint else "",
    }
    props = {
        key: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for key, value in content.items()
    }
    return props | {key: json.dumps(value) for key, value in extra.items()}


def manifest(
    model: Model,
    settings: ExportSettings,
    gates: list[dict[str, Any]],
    samples: ImageSet,
    budgets: Sequence[Budget],
    command: Sequence[str],
    engine: str | None = None,
    notes: Sequence[str] = (),
    classes: ClassNames | None = None,
) -> dict[str, Any]:
    checkpoint, batch = model.checkpoint, whole_batch(settings, task_named(settings.task))
    sometimes: dict[str, Any] = {"class_names": list(classes.names)} if classes else {}
    if checkpoint and checkpoint.origin:
        sometimes["origin"] = dataclasses.asdict(checkpoint.origin)
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
            "budgets": [budget.value for budget in budgets],
            "gate_outputs": settings.gate_outputs,
            "plugins": settings.plugins,
        },
        "gates": gates,
        "batch": {"min": batch.min, "opt": batch.opt, "max": batch.max},
        "precision": settings.precision,
        "opset": settings.opset,
        "engine": engine,
        "reference": {
            "source": samples.kind,
            "images": len(samples),
            "sha256": samples.sha256,
        },
        "assumed": {one.name: typed(one.value) for one in model.assumptions},
        "notes": [*model.notes, *notes],
        "environment": describe_environment(),
        **sometimes,
    }


def describe_quantised(chosen: Quantised, settings: ExportSettings) -> dict[str, Any]:
    """What a manifest says of quantised layers."""
    record = {
        "method": settings.calibration_method,
        "steps": dict(chosen.steps),
        "float32": list(chosen.kept),
    }
    return {"quantised": record}


def command_record(command: Sequence[str]) -> list[str]:
    """A command line as a bundle may tell it."""
    return [_without_folders(part) for part in command]


def _without_folders(argument: str) -> str:
    """`--arch=/home/me/a.yaml` -> `--arch=a.yaml`: a bundle travels, its maker's folders do not."""
    option, equals, value = argument.rpartition("=")
    local = "/" in value and not is_id(value)
    return f"{option}{equals}{Path(value).name if local else value}"
