"""From a checkpoint to a bundle: graph, checks, metadata, reference outputs, manifest."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from svit_deploy import __version__
from svit_deploy.bundle import MODEL, REFERENCE, Bundle, open_bundle, write_bundle, write_manifest
from svit_deploy.compare import keep_ratios
from svit_deploy.config import BatchRange, ModelConfig, TokenMode, spread_over_gates
from svit_deploy.environment import describe_environment
from svit_deploy.errors import UsageError
from svit_deploy.export.check import finish
from svit_deploy.export.vit import VitGraph
from svit_deploy.images import ImageSet, synthetic_images
from svit_deploy.models import Model, config_to_dict, load_model
from svit_deploy.progress import SILENT, Progress

log = logging.getLogger(__name__)

SAMPLES = 16
MIN_OPSET, MAX_OPSET = 20, 23
GATING = "keep iff margin > threshold, margin = keep logit - prune logit, a tie is pruned"


@dataclass(frozen=True)
class ExportSettings:
    """What to export and how.

    Attributes:
        tokens: token mode.
        batch: batch sizes that the graph must run; one graph serves any size.
        image_size: (height, width) in pixels; the checkpoint's own by default.
        budget: in `budget` mode: counts, ratios, or "auto" (needs calibration images). One
            value per gate, or a number of values that divides the number of gates.
        budget_percentile: with "auto", the share of images that must fit, 0 to 100.
        calibration: images for budgets and gates.
        calibrate_gates: images to choose gate thresholds from.
        target_keep: keep ratio per gate for them; the model's own targets by default.
        gate_outputs: keep `keep_mask`, `margin` and `overflow` among the graph's outputs.
        opset: ONNX operator set version.
    """

    tokens: TokenMode = TokenMode.DYNAMIC
    batch: BatchRange = field(default_factory=lambda: BatchRange(1, 1, 32))
    image_size: tuple[int, int] | None = None
    budget: str | None = None
    budget_percentile: float = 100.0
    calibration: ImageSet | None = None
    calibrate_gates: ImageSet | None = None
    target_keep: tuple[float, ...] = ()
    gate_outputs: bool = True
    opset: int = 20

    def __post_init__(self) -> None:
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise UsageError(
                f"--opset {self.opset} is not supported",
                f"use {MIN_OPSET} to {MAX_OPSET}; 20 is the first with a GELU operator",
            )
        if self.budget is not None and self.tokens is not TokenMode.BUDGET:
            raise UsageError(
                f"--budget has no meaning with --tokens {self.tokens.value}",
                "add --tokens budget, or leave --budget out",
            )
        if not 0 < self.budget_percentile <= 100:
            raise UsageError(
                f"--budget-percentile {self.budget_percentile:g} is outside (0, 100]",
                "give, for example, 99",
            )
        if self.target_keep and self.calibrate_gates is None:
            raise UsageError(
                "--target-keep needs images to measure on", "add --calibrate-gates IMAGES"
            )


def export_onnx(
    checkpoint: Path,
    output: Path,
    settings: ExportSettings | None = None,
    *,
    arch: str | None = None,
    overrides: Mapping[str, str] | None = None,
    allow_pickle: bool = False,
    force: bool = False,
    command: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Bundle:
    """Exports a checkpoint to a bundle (docs/architecture.md).

    Args:
        arch: preset name or YAML file with what weights cannot tell.
        overrides: single fields of it, as text.
        force: replace a bundle at `output`.
        command: the command line, kept in the manifest for the record.

    Raises:
        SvitDeployError: InputError, UsageError or ExportError, each with its fix.
    """
    settings = settings or ExportSettings()
    progress.update(f"reading {checkpoint.name}", 0)
    model = load_model(
        checkpoint,
        arch=arch,
        overrides=overrides,
        image_size=settings.image_size,
        allow_pickle=allow_pickle,
    )
    return export_model(model, output, settings, force=force, command=command, progress=progress)


def export_model(
    model: Model,
    output: Path,
    settings: ExportSettings,
    *,
    force: bool = False,
    command: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Bundle:
    """Exports a loaded model; see `export_onnx`."""
    from svit_deploy.models.reference import Reference

    if settings.tokens is not TokenMode.DENSE and not model.config.num_gates:
        raise UsageError(
            f"a {model.config.family} model has no gates, so --tokens {settings.tokens.value} "
            "cannot prune anything",
            "use --tokens dense",
        )
    with write_bundle(output, force=force) as folder:
        model, measured = _calibrated(model, settings, progress)
        if settings.tokens is TokenMode.DENSE:
            model = without_gates(model)
        progress.update("running the reference", 0.7)
        budgets = choose_budgets(model, settings)
        samples = _samples(settings, model.config)
        inputs = samples.inputs(model.config.preprocess, model.config.image_size)
        rows = budget_rows(model.config, budgets)
        outputs = Reference(model).run(inputs, reference_rule(model.config, rows))
        if measured is None and model.config.num_gates:
            measured = keep_ratios(outputs.keep_mask, model.config)
        gates = describe_gates(model.config, measured or (), budgets)
        metadata = _metadata(model, settings, gates)
        progress.update("writing and checking the graph", 0.9)
        onnx.save(build_graph(model, settings, budgets, metadata), folder / MODEL)
        _save_reference(folder / REFERENCE, inputs, samples, outputs)
        write_manifest(folder, _manifest(model, settings, gates, samples, budgets, command))
    return open_bundle(output)


def build_graph(
    model: Model, settings: ExportSettings, budgets: Sequence[int], metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """The checked ONNX graph of a model in one token mode."""
    graph = VitGraph(model, settings.tokens, budgets, settings.gate_outputs, settings.opset)
    return finish(graph.build(), dict(metadata), __version__)


def without_gates(model: Model) -> Model:
    """The dense twin: the same weights, every block on every token."""
    config = dataclasses.replace(
        model.config, gate_blocks=(), gate_class_token=(), target_keep=(), thresholds=()
    )
    return dataclasses.replace(model, config=config)


def _calibrated(
    model: Model, settings: ExportSettings, progress: Progress
) -> tuple[Model, tuple[float, ...] | None]:
    """The model with calibrated thresholds and the keep ratios measured, if asked for."""
    from svit_deploy.calibrate import calibrate_gates
    from svit_deploy.models.reference import Reference

    images, config = settings.calibrate_gates, model.config
    if images is None or settings.tokens is TokenMode.DENSE:
        return model, None
    targets = settings.target_keep or config.target_keep
    if not targets:
        raise UsageError(
            "the checkpoint does not say which keep ratios its gates were trained for",
            "add --target-keep 0.7,0.49,0.343",
        )
    targets = spread_over_gates(targets, config.num_gates, "--target-keep")
    inputs = images.inputs(config.preprocess, config.image_size)
    progress.update("calibrating the gates", 0.1)
    found = calibrate_gates(
        Reference(model),
        inputs,
        targets,
        lambda done, total: progress.update("calibrating the gates", 0.1 + 0.6 * done / total),
    )
    log.info("gate thresholds calibrated on %d images", len(images))
    config = dataclasses.replace(config, thresholds=found.thresholds, target_keep=targets)
    return dataclasses.replace(model, config=config), found.measured_keep


def choose_budgets(model: Model, settings: ExportSettings) -> tuple[int, ...]:
    """Gated tokens per gate from `--budget`; empty in other modes.

    Raises:
        UsageError: missing, malformed, or outside 1 … gated tokens.
    """
    from svit_deploy.calibrate import auto_budgets
    from svit_deploy.models.reference import Reference

    if settings.tokens is not TokenMode.BUDGET:
        return ()
    config, text = model.config, settings.budget
    if text is None:
        raise UsageError(
            "--tokens budget needs to know how many tokens each gate may keep",
            "add --budget 0.75,0.55,0.4 (ratios), --budget 150,110,80 (counts) or "
            "--budget auto --calibration IMAGES",
        )
    if text == "auto":
        if settings.calibration is None:
            raise UsageError("--budget auto needs images", "add --calibration IMAGES")
        inputs = settings.calibration.inputs(config.preprocess, config.image_size)
        outputs = Reference(model).run(inputs)
        return auto_budgets(outputs.keep_mask, config, settings.budget_percentile)
    parts = spread_over_gates(tuple(text.split(",")), config.num_gates, "--budget")
    return tuple(
        _one_budget(part, config.gated_tokens(gate), gate) for gate, part in enumerate(parts)
    )


def _one_budget(text: str, gated: int, gate: int) -> int:
    """A count (whole number) or a ratio (with a point), checked against the gated tokens."""
    fix = f"give a ratio above 0 and at most 1.0, or a count from 1 to {gated}"
    try:
        count = math.ceil(float(text) * gated - 1e-9) if "." in text else int(text)
        sensible = 1 <= count <= gated and (0 < float(text) <= 1 or "." not in text)
    except (ValueError, OverflowError):
        raise UsageError(f"--budget {text!r} is neither a count nor a ratio", fix) from None
    if not sensible:
        raise UsageError(f"--budget {text} for gate {gate} is out of range", fix)
    return count


def budget_rows(config: ModelConfig, budgets: Sequence[int]) -> tuple[int, ...]:
    """Rows each gated block computes per image: its budget and the tokens always kept."""
    return tuple(
        budget + (0 if config.gate_class_token[gate] else config.prefix_tokens)
        for gate, budget in enumerate(budgets)
    )


def reference_rule(config: ModelConfig, rows: Sequence[int]) -> Any:
    """The reference's keep rule that an exported graph must reproduce."""
    from svit_deploy.models.reference import keep_above, keep_budget

    rule = keep_above(config.thresholds)
    return keep_budget(rule, rows) if rows else rule


def _samples(settings: ExportSettings, config: ModelConfig) -> ImageSet:
    """The first images given, else synthetic ones."""
    for images in (settings.calibration, settings.calibrate_gates):
        if images is not None:
            return images[:SAMPLES]
    return synthetic_images(SAMPLES, config.image_size)


def _save_reference(path: Path, inputs: np.ndarray, samples: ImageSet, outputs: Any) -> None:
    arrays = {
        "images": inputs,
        "logits": outputs.logits,
        "keep_mask": outputs.keep_mask,
        "margin": outputs.margin,
    }
    if samples.labels is not None:
        arrays["labels"] = samples.labels
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


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
            "threshold": config.thresholds[gate],
            "budget": budgets[gate] if budgets else None,
        }
        for gate in range(config.num_gates)
    ]


def _metadata(
    model: Model, settings: ExportSettings, gates: list[dict[str, Any]]
) -> dict[str, str]:
    """metadata_props: flat strings, JSON where nested; no path and no time of day."""
    checkpoint = model.checkpoint
    content: dict[str, Any] = {
        "schema": "1",
        "version": __version__,
        "method": model.config.family,
        "arch": Path(model.arch).name,
        "mode": settings.tokens.value,
        "gating": GATING if gates else "none",
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


def _manifest(
    model: Model,
    settings: ExportSettings,
    gates: list[dict[str, Any]],
    samples: ImageSet,
    budgets: Sequence[int],
    command: Sequence[str],
) -> dict[str, Any]:
    checkpoint = model.checkpoint
    return {
        "tool": {"name": "svit-deploy", "version": __version__},
        "command": [Path(part).name if "/" in part else part for part in command],
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
            "mode": settings.tokens.value,
            "budgets": list(budgets),
            "gate_outputs": settings.gate_outputs,
        },
        "gates": gates,
        "batch": {"min": settings.batch.min, "opt": settings.batch.opt, "max": settings.batch.max},
        "precision": "fp32",
        "opset": settings.opset,
        "reference": {
            "source": samples.source,
            "images": len(samples),
            "sha256": samples.sha256,
        },
        "notes": list(model.notes),
        "environment": describe_environment(),
    }
