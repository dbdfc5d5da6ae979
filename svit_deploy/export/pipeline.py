"""The export, step by step: model, thresholds, budgets, samples, graph, engine, manifest."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx

from svit_deploy import __version__
from svit_deploy.backbones.writer import GraphOptions
from svit_deploy.bundle import (
    MANIFEST,
    MODEL,
    REFERENCE,
    Bundle,
    check_output,
    open_bundle,
    write_bundle,
    write_manifest,
)
from svit_deploy.bundle.manifest import describe_task
from svit_deploy.engines.tensorrt.build import require_builder
from svit_deploy.errors import InputError, UsageError
from svit_deploy.export.budgets import choose_budgets
from svit_deploy.export.engine import (
    build_beside,
    engine_notes,
    find_plugin_library,
    rebuild,
)
from svit_deploy.export.outline import outline, written_files
from svit_deploy.export.quantised import choose_quantised
from svit_deploy.export.record import describe_gates, describe_quantised, manifest, metadata
from svit_deploy.export.settings import AUTO_BUDGET, ExportSettings
from svit_deploy.export.shapes import profiles_for, whole_batch
from svit_deploy.export.thresholds import calibrated, gate_targets
from svit_deploy.graph.check import finish
from svit_deploy.images import Images, ImageSet, check_images, read_through
from svit_deploy.images.prepared import Prepared, groups
from svit_deploy.images.sets import load_all
from svit_deploy.loading.assumptions import refuse_guesses
from svit_deploy.loading.load import load_model
from svit_deploy.machine.packages import require, require_onnxruntime, require_torch
from svit_deploy.methods.families import family_of
from svit_deploy.model.budget import Budget, rows_within
from svit_deploy.model.class_names import read_class_names
from svit_deploy.model.config import ModelConfig, TokenMode
from svit_deploy.model.counts import keep_ratios
from svit_deploy.model.model import Model, without_gates
from svit_deploy.model.precision import FORMATS
from svit_deploy.model.sizes import SizeRange
from svit_deploy.plan import RUN, Plan
from svit_deploy.progress import SILENT, Progress
from svit_deploy.tasks import Part, Task, task_named
from svit_deploy.tasks.samples import prepare_all

log = logging.getLogger(__name__)


def export_source(
    source: Path,
    output: Path,
    settings: ExportSettings | None = None,
    *,
    force: bool = False,
    command: Sequence[str] = (),
    progress: Progress = SILENT,
    plan: Plan = RUN,
) -> Bundle:
    """Exports a checkpoint to a bundle (docs/architecture.md), or builds an engine of a bundle.

    Args:
        force: replace a bundle at `output`.
        command: the command line, kept in the manifest for the record.
        plan: is asked for what is needed before anything is read.

    Raises:
        SvitDeployError: InputError, UsageError, CapabilityError or ExportError, with its fix.
    """
    settings = settings or ExportSettings()
    if source.is_dir() and not (source / MANIFEST).is_file():
        raise InputError(
            f"{source} is a folder without a {MANIFEST}, so it is no bundle",
            "give a checkpoint (.pth or .safetensors), or the folder of an export",
        )
    if source.is_dir() or source.name == MANIFEST:
        return rebuild(
            source, output, settings, force=force, command=command, progress=progress, plan=plan
        )
    task = task_named(settings.task)
    task.check_precision(settings.precision)
    if settings.engine is not None:
        plan.needs(
            require_builder, settings.engine.target, settings.engine.device, settings.precision
        )
        plan.needs(find_plugin_library, settings.engine, settings.plugins)
    plan.needs(require_torch, "export", "the reference outputs that a bundle is verified with")
    if settings.precision in FORMATS:
        who = f"export --precision {settings.precision}"
        plan.needs(require_onnxruntime, who, "the ranges of layers' inputs")
    for package, purpose in task.packages:
        plan.needs(require, package, f"--task {task.name}", f"{purpose} of a bundle")
    plan.needs(check_output, output, force=force)
    for images in (settings.calibration, settings.calibrate_gates):
        plan.needs(check_images, images, task.medium)
    wanted = task.parse_sizes(settings.image_size)
    progress.update(f"reading {source.name}", 0)
    model = load_model(
        source,
        task=task.name,
        arch=settings.arch,
        overrides=settings.overrides,
        image_size=None if wanted is None else wanted.opt,
        allow_pickle=settings.allow_pickle,
        weights=settings.weights,
    )
    bundle = export_model(
        model,
        output,
        settings,
        sizes=wanted,
        force=force,
        command=command,
        progress=progress,
        plan=plan,
    )
    for note in bundle.manifest["notes"]:
        log.info("%s", note)
    return bundle


def export_model(
    model: Model,
    output: Path,
    settings: ExportSettings,
    *,
    sizes: SizeRange | None = None,
    force: bool = False,
    command: Sequence[str] = (),
    progress: Progress = SILENT,
    plan: Plan = RUN,
) -> Bundle:
    """Exports a loaded model; see `export_source`.

    Args:
        sizes: image sizes to run, where the task's graphs run several; its own by default.
    """
    settings = dataclasses.replace(settings, tokens=choose_mode(model, settings))
    if settings.mode is TokenMode.DENSE:
        model = without_gates(model)
    refuse_guesses(model, settings.strict)
    task = task_named(settings.task)
    classes = None
    if settings.class_names is not None:
        classes = read_class_names(settings.class_names, model.config.num_classes)
    sizes = task.sizes(model.config, sizes)
    model = _at(model, sizes)
    limit, medium = settings.max_images, task.reader(model.config)
    calibration = read_through(settings.calibration, limit, progress, medium=medium)
    gate_images = read_through(settings.calibrate_gates, limit, progress, medium=medium)
    chooses = settings.budget == AUTO_BUDGET or settings.precision in FORMATS
    deciding = [gate_images, calibration if chooses else None]
    if any(images is not None and not images.preprocessed for images in deciding):
        refuse_guesses(model, settings.strict, pictures_decide=True)
    targets = gate_targets(model, settings)
    images_decide = settings.budget == AUTO_BUDGET and calibration is not None
    budgets = () if images_decide else choose_budgets(model, task, settings, None, sizes)
    profiles = profiles_for(settings, task, sizes) if settings.engine else ()
    for line in outline(model, task, sizes, settings, budgets, targets, profiles):
        plan.tell(*line)
    plan.writes(*written_files(output, task, settings.precision, settings.engine is not None))
    plan.begin()
    with write_bundle(output, force=force) as folder:
        model, measured = calibrated(model, task, targets, gate_images, sizes, progress)
        if images_decide:
            budgets = choose_budgets(model, task, settings, calibration, sizes)
        quantised = None
        if settings.precision in FORMATS:
            assert calibration is not None
            plain = build_graph(model, settings, budgets, sizes, {})
            quantised = choose_quantised(
                model,
                plain,
                task,
                FORMATS[settings.precision],
                calibration,
                sizes,
                settings.calibration_method,
                settings.int8_keep,
                progress,
            )
        steps = quantised.steps if quantised else {}
        images, source = _samples(task, model.config, sizes, calibration or gate_images)
        parts: list[Part] = []
        for group in groups(images, task.together):
            done = sum(map(len, parts)) / len(images)
            progress.update("running the reference", 0.7 + 0.2 * done)
            parts.append(run_reference(model, task, group, budgets, settings.precision, steps))
        gates = describe_gates(model.config, measured or _kept(parts, model.config), budgets)
        progress.update("writing and checking the graph", 0.9)
        extra = describe_task(task, sizes)
        props = metadata(model, settings, gates, extra)
        onnx.save(build_graph(model, settings, budgets, sizes, props, steps), folder / MODEL)
        arrays = task.record(parts, model.config)
        np.savez_compressed(folder / REFERENCE, **arrays)  # type: ignore[arg-type]
        engine, notes = None, []
        if settings.engine is not None:
            engine = build_beside(
                folder, model.config, task, profiles, settings, len(steps), progress
            )
            notes = engine_notes(settings.mode, model.config.num_gates)
        content = manifest(model, settings, gates, source, budgets, command, engine, notes, classes)
        if quantised is not None:
            extra = {**extra, **describe_quantised(quantised, settings)}
        write_manifest(folder, {**extra, **content})
    return open_bundle(output)


def choose_mode(model: Model, settings: ExportSettings) -> TokenMode:
    """The token mode asked for, else the method's own.

    Raises:
        UsageError: the method has no such mode, or nothing tells which method it is.
    """
    family, wanted = family_of(model.config), settings.tokens
    if model.candidates and wanted is not TokenMode.DENSE:
        raise UsageError(
            f"a {model.config.family} model has no gates, and {', '.join(model.candidates)} all "
            "have such weights: they do not tell which tokens to compute",
            "use --tokens dense, or name the method with --arch, or --set family=NAME",
        )
    if wanted is None:
        wanted = family.method.default_mode(engine=settings.engine is not None)
    if settings.budget is not None and wanted is not TokenMode.BUDGET:
        raise UsageError(
            f"a {family.name} model itself says how many tokens remain", "leave --budget out"
        )
    if wanted not in family.modes:
        known = " or ".join(mode.value for mode in family.modes)
        what = "has no gates" if not model.config.num_gates else "is exact in other token modes"
        raise UsageError(
            f"a {family.name} model {what}, so --tokens {wanted.value} cannot be exported",
            f"use --tokens {known}",
        )
    return wanted


def build_graph(
    model: Model,
    settings: ExportSettings,
    budgets: Sequence[Budget],
    sizes: SizeRange,
    props: Mapping[str, str],
    steps: Mapping[str, float] = MappingProxyType({}),
) -> onnx.ModelProto:
    """The checked ONNX graph of a model in one token mode.

    Args:
        steps: of the inputs of quantised layers.
    """
    task, family = task_named(settings.task), family_of(model.config)
    options = GraphOptions(
        mode=settings.mode,
        budgets=tuple(budgets),
        gate_outputs=settings.gate_outputs,
        opset=settings.opset,
        precision=settings.precision,
        steps=steps,
        plugins=settings.plugins,
        sizes=sizes,
        single=whole_batch(settings, task).max == 1 and not task.many_rows,
    )
    writer = family.backbone.graph(model, family.method, options)
    task.write(writer)
    return finish(writer.graph.model(), dict(props), __version__)


def run_reference(
    model: Model,
    task: Task,
    images: Sequence[Prepared],
    budgets: Sequence[Budget],
    precision: str,
    steps: Mapping[str, float] = MappingProxyType({}),
) -> Part:
    """What the reference computes of images of one size, within the budgets."""
    from svit_deploy.backbones.rules import keep_above, keep_budget
    from svit_deploy.tasks.reference import Reference

    rows = rows_within(budgets, model.config.at(images[0].size).num_tokens)
    rule = keep_budget(keep_above(model.config.thresholds), rows)
    return Reference(model, task, steps).part(images, rule, precision)


def _at(model: Model, sizes: SizeRange) -> Model:
    """The model at the typical size."""
    return dataclasses.replace(model, config=model.config.at(sizes.opt))


def _kept(parts: Sequence[Part], config: ModelConfig) -> tuple[float, ...]:
    """Mean keep ratio of each gate on the samples."""
    ratios = [
        keep_ratios(part.result.selected.keep_mask, config.at(part.images[0].size))
        for part in parts
        for _ in part.images
    ]
    return tuple(np.mean(ratios, axis=0).tolist()) if config.num_gates else ()


def _samples(
    task: Task, config: ModelConfig, sizes: SizeRange, given: Images | None
) -> tuple[list[Prepared], ImageSet]:
    """The first images given, else painted ones, of several sizes where the graph runs them."""
    if given is not None:
        chosen = load_all(given.first(task.samples))
        return list(map(task.excerpt, prepare_all(chosen, task, config, sizes))), chosen
    return task.paint(config, sizes, task.painted, {sizes.opt})
