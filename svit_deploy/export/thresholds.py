"""Thresholds of gates, chosen so that each keeps a wanted share of its tokens."""

from __future__ import annotations

import dataclasses
import logging

from svit_deploy.errors import UsageError
from svit_deploy.export.settings import ExportSettings
from svit_deploy.images import Images
from svit_deploy.methods.families import family_of
from svit_deploy.model.config import TokenMode, spread_over_gates
from svit_deploy.model.model import Model
from svit_deploy.model.sizes import SizeRange
from svit_deploy.progress import Progress
from svit_deploy.tasks import Task
from svit_deploy.tasks.samples import prepare_all

log = logging.getLogger(__name__)


def gate_targets(model: Model, settings: ExportSettings) -> tuple[float, ...]:
    """The keep ratio that each gate is to be calibrated to; empty where that is not asked for.

    Raises:
        UsageError: there are no gates to calibrate, or nothing tells the ratios.
    """
    config, family = model.config, family_of(model.config)
    if settings.calibrate_gates is None or settings.mode is TokenMode.DENSE:
        return ()
    if not family.method.trained_gates:
        raise UsageError(
            f"{family.title} has no trained gates to calibrate", "leave --calibrate-gates out"
        )
    targets = settings.target_keep or config.target_keep
    if not targets:
        raise UsageError(
            "the checkpoint does not say which keep ratios its gates were trained for",
            "add --target-keep 0.7,0.49,0.343",
        )
    return spread_over_gates(targets, config.num_gates, "--target-keep")


def calibrated(
    model: Model,
    task: Task,
    targets: tuple[float, ...],
    images: Images | None,
    sizes: SizeRange,
    progress: Progress,
) -> tuple[Model, tuple[float, ...] | None]:
    """The model with calibrated thresholds and the keep ratios measured, if there are targets."""
    from svit_deploy.loading.calibrate import calibrate_gates
    from svit_deploy.tasks.reference import Reference

    if images is None or not targets:
        return model, None
    config, most = model.config, task.calibration_images
    if most is not None and len(images) > most:
        log.info("gates are calibrated on the first %d images", most)
        images = images.first(most)
    prepared = list(prepare_all(images, task, config, sizes))
    progress.update("calibrating the gates", 0.1)
    found = calibrate_gates(
        Reference(model, task),
        prepared,
        targets,
        lambda done, total: progress.update("calibrating the gates", 0.1 + 0.6 * done / total),
    )
    log.info("gate thresholds calibrated on %d images", len(images))
    config = dataclasses.replace(config, thresholds=found.thresholds, target_keep=targets)
    return dataclasses.replace(model, config=config), found.measured_keep
