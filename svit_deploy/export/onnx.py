"""From a checkpoint to a bundle: graph, checks, metadata, reference outputs, manifest."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from svit_deploy import __version__
from svit_deploy.bundle import MODEL, REFERENCE, Bundle, open_bundle, write_bundle, write_manifest
from svit_deploy.compare import budget_rows, keep_ratios
from svit_deploy.config import ModelConfig, TokenMode, spread_over_gates
from svit_deploy.errors import UsageError
from svit_deploy.export.budgets import choose_budgets
from svit_deploy.export.check import finish
from svit_deploy.export.engine import add_engine, engine_notes
from svit_deploy.export.record import describe_gates, manifest, metadata, save_reference
from svit_deploy.export.settings import ExportSettings
from svit_deploy.export.vit import VitGraph
from svit_deploy.images import ImageSet, synthetic_images
from svit_deploy.methods import method_of
from svit_deploy.models import Model, load_model, without_gates
from svit_deploy.profiles import batch_profile, check_profiles
from svit_deploy.progress import SILENT, Progress

log = logging.getLogger(__name__)

SAMPLES = 16


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
    from svit_deploy.models.reference import Reference, keep_above, keep_budget

    settings = dataclasses.replace(settings, tokens=choose_mode(model, settings))
    with write_bundle(output, force=force) as folder:
        model, measured = _calibrated(model, settings, progress)
        if settings.mode is TokenMode.DENSE:
            model = without_gates(model)
        progress.update("running the reference", 0.7)
        budgets = choose_budgets(model, settings)
        samples = _samples(settings, model.config)
        inputs = samples.inputs(model.config.preprocess, model.config.image_size)
        rows = budget_rows(model.config, budgets)
        rule = keep_budget(keep_above(model.config.thresholds), rows)
        outputs = Reference(model).run(inputs, rule)
        if measured is None and model.config.num_gates:
            measured = keep_ratios(outputs.keep_mask, model.config)
        gates = describe_gates(model.config, measured or (), budgets)
        progress.update("writing and checking the graph", 0.9)
        props = metadata(model, settings, gates)
        onnx.save(build_graph(model, settings, budgets, props), folder / MODEL)
        save_reference(folder / REFERENCE, inputs, samples, outputs, method_of(model.config))
        engine, notes = None, []
        if settings.engine is not None:
            engine = _engine(folder, model, settings, progress)
            notes = engine_notes(settings.mode, model.config.num_gates)
        content = manifest(model, settings, gates, samples, budgets, command, engine, notes)
        write_manifest(folder, content)
    return open_bundle(output)


def choose_mode(model: Model, settings: ExportSettings) -> TokenMode:
    """The token mode asked for, else the method's own.

    Raises:
        UsageError: the method has no such mode, or nothing tells which method it is.
    """
    method, wanted = method_of(model.config), settings.tokens
    if model.candidates and wanted is not TokenMode.DENSE:
        raise UsageError(
            f"a {model.config.family} model has no gates, and {', '.join(model.candidates)} all "
            "have such weights: they do not tell which tokens to compute",
            "use --tokens dense, or name the method with --arch, or --set family=NAME",
        )
    if wanted is None:
        wanted = method.default_mode(engine=settings.engine is not None)
    if settings.budget is not None and wanted is not TokenMode.BUDGET:
        raise UsageError(
            f"a {method.name} model itself says how many tokens remain", "leave --budget out"
        )
    if wanted not in method.modes:
        known = " or ".join(mode.value for mode in method.modes)
        what = "has no gates" if not model.config.num_gates else "is exact in other token modes"
        raise UsageError(
            f"a {method.name} model {what}, so --tokens {wanted.value} cannot be exported",
            f"use --tokens {known}",
        )
    return wanted


def build_graph(
    model: Model, settings: ExportSettings, budgets: Sequence[int], props: Mapping[str, str]
) -> onnx.ModelProto:
    """The checked ONNX graph of a model in one token mode."""
    writer = method_of(model.config).graph or VitGraph
    graph = writer(
        model,
        settings.mode,
        budgets,
        settings.gate_outputs,
        settings.opset,
        settings.precision,
        settings.plugins,
    )
    return finish(graph.build(), dict(props), __version__)


def _engine(folder: Path, model: Model, settings: ExportSettings, progress: Progress) -> str:
    """Builds the engine and returns its file name."""
    assert settings.engine is not None
    config, buckets = model.config, settings.buckets or (settings.batch,)
    profiles = settings.profiles or [batch_profile(batch, config.image_size) for batch in buckets]
    check_profiles(profiles, config.image_size)
    sidecar = add_engine(
        folder / MODEL,
        settings.engine,
        profiles,
        config,
        settings.mode,
        settings.precision,
        settings.plugins,
        progress,
    )
    return sidecar.engine


def _calibrated(
    model: Model, settings: ExportSettings, progress: Progress
) -> tuple[Model, tuple[float, ...] | None]:
    """The model with calibrated thresholds and the keep ratios measured, if asked for."""
    from svit_deploy.calibrate import calibrate_gates
    from svit_deploy.models.reference import Reference

    images, config = settings.calibrate_gates, model.config
    if images is None or settings.mode is TokenMode.DENSE:
        return model, None
    if not method_of(config).trained_gates:
        raise UsageError(
            f"{method_of(config).title} has no trained gates to calibrate",
            "leave --calibrate-gates out",
        )
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


def _samples(settings: ExportSettings, config: ModelConfig) -> ImageSet:
    """The first images given, else synthetic ones."""
    for images in (settings.calibration, settings.calibrate_gates):
        if images is not None:
            return images[:SAMPLES]
    return synthetic_images(SAMPLES, config.image_size)
