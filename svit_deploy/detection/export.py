"""From a detector's checkpoint to a bundle."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from svit_deploy import __version__
from svit_deploy.bundle import MODEL, REFERENCE, Bundle, open_bundle, write_bundle, write_manifest
from svit_deploy.config import TokenMode, spread_over_gates
from svit_deploy.detection.bundle import Sample, record, subsample
from svit_deploy.detection.config import AdapterConfig, Task
from svit_deploy.detection.graph.backbone import AdapterGraph, rows_within
from svit_deploy.detection.graph.detector import DetectorGraph
from svit_deploy.detection.model import load_detector
from svit_deploy.detection.parts import engine_graph
from svit_deploy.detection.preprocess import Prepared, as_prepared, prepare_all
from svit_deploy.detection.settings import DetectionSettings, budget_shares
from svit_deploy.errors import UsageError
from svit_deploy.export.check import finish
from svit_deploy.export.engine import add_engine, engine_notes
from svit_deploy.export.onnx import choose_mode
from svit_deploy.export.record import describe_gates, manifest, metadata
from svit_deploy.export.settings import EngineOptions
from svit_deploy.images import ImageSet, synthetic_images
from svit_deploy.models import Model, without_gates
from svit_deploy.packages import require
from svit_deploy.progress import SILENT, Progress

log = logging.getLogger(__name__)

SAMPLES = 4
PAINTED = 2
"""Pictures painted as samples where none are given."""
CALIBRATION_IMAGES = 32
"""At most so many choose thresholds: their feature maps are all in memory, 60 MB of a full size."""


def export_detection(
    checkpoint: Path,
    output: Path,
    settings: DetectionSettings,
    *,
    arch: str | None = None,
    overrides: Mapping[str, str] | None = None,
    allow_pickle: bool = False,
    force: bool = False,
    command: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Bundle:
    """Exports a checkpoint to a bundle; see `export.onnx.export_onnx`."""
    if settings.task is Task.DETECT:
        require("torchvision", "--task detect", "the reference detections of a bundle")
    progress.update(f"reading {checkpoint.name}", 0)
    model = load_detector(
        checkpoint,
        settings.task,
        arch=arch,
        overrides=overrides,
        image_size=settings.sizes.opt,
        allow_pickle=allow_pickle,
    )
    return export_detector(model, output, settings, force=force, command=command, progress=progress)


def export_detector(
    model: Model,
    output: Path,
    settings: DetectionSettings,
    *,
    force: bool = False,
    command: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Bundle:
    """Exports a loaded model; see `export_detection`."""
    config = dataclasses.replace(_config(model), image_size=settings.sizes.opt)
    model = dataclasses.replace(model, config=config)
    settings = dataclasses.replace(settings, tokens=choose_mode(model, settings))
    with write_bundle(output, force=force) as folder:
        model = _calibrated(model, settings, progress)
        if settings.mode is TokenMode.DENSE:
            model = without_gates(model)
        shares = _shares(model, settings)
        images, source = _samples(settings, _config(model))
        samples = []
        for done, image in enumerate(images):
            progress.update("running the reference", 0.5 + 0.4 * done / len(images))
            samples.append(compute_sample(model, image, shares))
        count = len(samples)
        config = _config(model)
        kept = np.mean([sample.keep_mask.mean(axis=1) for sample in samples], axis=0)
        gates = describe_gates(config, kept.tolist(), ())
        for gate, share in zip(gates, shares, strict=False):
            gate["budget"] = share
        progress.update("writing and checking the graph", 0.9)
        extra: dict[str, Any] = {
            "task": settings.task.value,
            "image": {n: list(getattr(settings.sizes, n)) for n in ("min", "opt", "max")},
        }
        props = metadata(model, settings, gates) | {k: json.dumps(v) for k, v in extra.items()}
        onnx.save(build_detection_graph(model, settings, shares, props), folder / MODEL)
        arrays: dict[str, Any] = {
            f"{i}.{key}": array for i, s in enumerate(samples) for key, array in record(s).items()
        }
        np.savez_compressed(folder / REFERENCE, **arrays)
        engine, notes = None, []
        if settings.engine is not None:
            engine = _engine(folder, config, settings, settings.engine, progress)
            notes = engine_notes(settings.mode, config.num_gates)
        content = manifest(model, settings, gates, source[:count], (), command, engine, notes)
        content["tokens"]["budgets"] = list(shares)
        write_manifest(folder, {**extra, **content})
    return open_bundle(output)


def _engine(
    folder: Path,
    config: AdapterConfig,
    settings: DetectionSettings,
    options: EngineOptions,
    progress: Progress,
) -> str:
    """Builds the engine and returns its file name; of a detector, the heads stay behind."""
    profiles = settings.profiles or [
        settings.sizes.profile(batch) for batch in settings.buckets or (settings.batch,)
    ]
    settings.sizes.check_profiles(profiles)
    with engine_graph(folder, settings.task) as graph:
        sidecar = add_engine(
            graph,
            options,
            profiles,
            config,
            settings.mode,
            settings.precision,
            settings.plugins,
            progress,
        )
    return sidecar.engine


def build_detection_graph(
    model: Model, settings: DetectionSettings, shares: Sequence[float], props: Mapping[str, str]
) -> onnx.ModelProto:
    """The checked ONNX graph of a model in one token mode."""
    writer = DetectorGraph if settings.task is Task.DETECT else AdapterGraph
    graph = writer(
        model,
        settings.mode,
        gate_outputs=settings.gate_outputs,
        opset=settings.opset,
        precision=settings.precision,
        plugins=settings.plugins,
        shares=shares,
        sizes=settings.sizes,
        single=settings.batch.max == 1,
    )
    return finish(graph.build(), dict(props), __version__)


def compute_sample(model: Model, image: Prepared, shares: Sequence[float]) -> Sample:
    """What the reference computes of one image, within the budgets."""
    from svit_deploy.detection.reference import AdapterReference
    from svit_deploy.models.reference import keep_above, keep_budget

    config = _config(model)
    tokens = config.tokens_of(image.size)
    rows = [rows_within(share, tokens) for share in shares]
    rule = keep_budget(keep_above(config.thresholds), rows)
    detections = None
    if config.has_heads:
        from svit_deploy.detection.reference_heads import DetectorReference

        whole = DetectorReference(model)
        found = whole.detect(image.pixels, image.image_size, image.scale, rule)
        outputs, detections = found.backbone, found.detections
    else:
        outputs = AdapterReference(model).backbone(image.pixels[None], rule)
    maps = [feature[0].numpy() for feature in outputs.features]
    keep, margin = outputs.keep_mask[0].numpy(), outputs.margin[0].numpy()
    return Sample(image, subsample(maps, image.size), keep, margin, detections)


def _config(model: Model) -> AdapterConfig:
    assert isinstance(model.config, AdapterConfig)
    return model.config


def _calibrated(model: Model, settings: DetectionSettings, progress: Progress) -> Model:
    """The model with thresholds at which the images keep the wanted share of tokens."""
    from svit_deploy.calibrate import calibrate_passes
    from svit_deploy.detection.reference import AdapterReference

    images, config = settings.calibrate_gates, _config(model)
    if images is None or settings.mode is TokenMode.DENSE:
        return model
    targets = settings.target_keep or config.target_keep
    if not targets:
        raise UsageError(
            "the checkpoint does not say which keep ratios its gates were trained for",
            "add --target-keep 0.7,0.49,0.343",
        )
    targets = spread_over_gates(targets, config.num_gates, "--target-keep")
    if len(images) > CALIBRATION_IMAGES:
        log.info("gates are calibrated on the first %d images", CALIBRATION_IMAGES)
        images = images[:CALIBRATION_IMAGES]
    reference = AdapterReference(model)
    passes = [
        reference.adapter_steps(image.pixels[None])
        for image in prepare_all(images, config, settings.sizes)
    ]
    progress.update("calibrating the gates", 0.1)
    found = calibrate_passes(
        config,
        passes,
        targets,
        lambda done, total: progress.update("calibrating the gates", 0.1 + 0.4 * done / total),
    )
    log.info("gate thresholds calibrated on %d images", len(images))
    config = dataclasses.replace(config, thresholds=found.thresholds, target_keep=targets)
    return dataclasses.replace(model, config=config)


def _shares(model: Model, settings: DetectionSettings) -> tuple[float, ...]:
    """The budgets of `budget` mode; with "auto", what the calibration images need."""
    from svit_deploy.detection.reference import AdapterReference

    config = _config(model)
    if settings.mode is not TokenMode.BUDGET:
        return ()
    if settings.budget != "auto":
        return budget_shares(settings.budget, config)
    if settings.calibration is None:
        raise UsageError("--budget auto needs images", "add --calibration IMAGES")
    reference = AdapterReference(model)
    ratios = [
        reference.backbone(image.pixels[None]).keep_mask[0].numpy().mean(axis=1)
        for image in prepare_all(settings.calibration, config, settings.sizes)
    ]
    needed = np.percentile(ratios, settings.budget_percentile, axis=0, method="higher")
    # Four digits are what the graph counts in; rounded up, and never nothing.
    return tuple(float(np.clip(np.ceil(ratio * 1e4) / 1e4, 1e-4, 1)) for ratio in needed)


def _samples(settings: DetectionSettings, config: AdapterConfig) -> tuple[list[Prepared], ImageSet]:
    """The first images given, else painted ones of the typical size."""
    for images in (settings.calibration, settings.calibrate_gates):
        if images is not None:
            chosen = images[:SAMPLES]
            return list(prepare_all(chosen, config, settings.sizes)), chosen
    painted = synthetic_images(PAINTED, settings.sizes.opt)
    inputs = painted.inputs(config.preprocess, settings.sizes.opt)
    return [as_prepared(pixels, settings.sizes) for pixels in inputs], painted
