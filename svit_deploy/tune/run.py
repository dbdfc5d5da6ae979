"""A choice by measurement: what it needs, what it will do, and where the result goes."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from svit_deploy import __version__
from svit_deploy.bench.durations import TimingSettings
from svit_deploy.bundle import check_output, write_bundle
from svit_deploy.engines.onnxruntime import require_provider
from svit_deploy.engines.providers import CPU
from svit_deploy.errors import UsageError
from svit_deploy.images import check_images, source_of
from svit_deploy.images.labels import read_labels
from svit_deploy.loading.load import load_model
from svit_deploy.loading.serialise import config_to_dict
from svit_deploy.loading.settings import LoadSettings
from svit_deploy.machine.environment import describe_environment
from svit_deploy.machine.packages import require, require_torch
from svit_deploy.model.model import Model
from svit_deploy.options import options_of, part_of
from svit_deploy.plan import RUN, Plan
from svit_deploy.progress import SILENT, Progress
from svit_deploy.tasks import Task, task_named
from svit_deploy.tune.candidates import Found, find_candidates
from svit_deploy.tune.report import TuneReport
from svit_deploy.tune.settings import TuneSettings
from svit_deploy.tune.steps import BENCH, EVALUATE, EXPORT, VERIFY, Tuner
from svit_deploy.tune.work import Step, Work, fingerprint

log = logging.getLogger(__name__)

NARROWING = ("modes", "precisions", "engines", "budget_percentiles", "threads")
OF_CHOICE = ("max_accuracy_drop", "latency_budget", "keep")
"""Options that say which steps are taken, and what is chosen in the end."""


def tune_checkpoint(
    source: Path,
    output: Path,
    settings: TuneSettings,
    *,
    force: bool = False,
    progress: Progress = SILENT,
    plan: Plan = RUN,
) -> TuneReport:
    """Exports, verifies, evaluates and benches what makes sense here, and keeps the best.

    Args:
        force: replace a bundle at `output`, and begin anew beside what another run left there.

    Returns:
        The report. Where nothing holds the limits it says so, and `output` is not written:
        `TuneReport.raise_for_failures` turns that into an error.

    Raises:
        UsageError: a mode, a precision or an engine that there is not.
        InputError: the checkpoint, the images or the labels cannot be read.
        CapabilityError: what is needed is missing, or nothing that is asked for can run here.
        VerificationFailed: not even the base equals its checkpoint.
        ExportError: `output` cannot be written, or what stands beside it is of another run.
    """
    task = task_named(settings.task)
    plan.needs(require_torch, "tune", "the reference forward pass")
    for package, purpose in task.packages:
        plan.needs(require, package, f"--task {task.name}", purpose)
    plan.needs(require_provider, CPU)
    plan.needs(check_output, output, force=force)
    for images in (settings.images, settings.calibration):
        plan.needs(check_images, images, task.medium)
    progress.update(f"reading {source.name}", 0)
    model = load_model(source, task=task.name, **vars(part_of(settings, LoadSettings)))
    check_truth(model, task, settings)
    found = find_candidates(model, settings)
    work = Work(output, run_of(model, settings), steps_of(found, settings), force, progress)
    plan.needs(work.check)
    for line in outline(found, settings, work):
        plan.tell(*line)
    plan.writes(output)
    plan.begin()
    with work:
        for note in model.notes:
            log.info("%s", note)
        report = Tuner(model, source, output, settings, found, work, task).report()
        if report.chosen is not None:
            with write_bundle(output, force=force) as folder:
                shutil.copytree(work.folder / report.chosen, folder, dirs_exist_ok=True)
    if report.chosen is not None and not settings.keep:
        work.finish()
    return report


def check_truth(model: Model, task: Task, settings: TuneSettings) -> None:
    """Reads what tells how good a candidate is, before the first is made.

    Raises:
        UsageError: it means nothing to the task.
        InputError: it cannot be read, or does not fit the images.
    """
    for flag, given, taken in (
        ("--labels", settings.labels, task.takes_labels),
        ("--annotations", settings.annotations, task.takes_truth),
    ):
        if given is not None and not taken:
            raise UsageError(f"{flag} has no meaning with --task {task.name}", "leave it out")
    names = source_of(settings.images, task.medium).names
    if settings.labels is not None:
        read_labels(settings.labels, names)
    if settings.annotations is not None:
        task.truth(settings.annotations, model.config).check(names)


def run_of(model: Model, settings: TuneSettings) -> dict[str, Any]:
    """What every step depends on: whatever else changes, most need not be done again."""
    assert model.checkpoint is not None
    environment = describe_environment()
    del environment["variables"]  # libraries set some when they are tried
    others = (*NARROWING, *OF_CHOICE, *options_of(TimingSettings))
    paths = ("images", "calibration", "labels", "annotations", "class_names")
    plain = {
        name: str(getattr(settings, name))
        for name in options_of(TuneSettings)
        if name not in others
    }
    medium = task_named(settings.task).medium
    return {
        "version": __version__,
        "checkpoint": model.checkpoint.sha256,
        "model": config_to_dict(model.config),
        "settings": plain,
        "files": {name: fingerprint(getattr(settings, name), medium) for name in paths},
        "environment": environment,
    }


def steps_of(found: Found, settings: TuneSettings) -> list[Step]:
    """All that can be known before something fails."""
    steps = [Step(EXPORT, name) for name in dict.fromkeys(c.variant.name for c in found.all)]
    steps += [Step(VERIFY, candidate.name) for candidate in found.all]
    if found.labelled:
        steps += [Step(EVALUATE, candidate.name) for candidate in found.all]
    timing, lanes = settings.timing, len(found.all) * len(settings.threads)
    bench_s = lanes * (timing.warmup_s + timing.duration_s)
    return steps + [Step(BENCH, f"batch {batch}", bench_s) for batch in settings.batches]


def outline(found: Found, settings: TuneSettings, work: Work) -> Iterator[tuple[str, str]]:
    """Label and text of what will be tried."""
    for candidate in found.all:
        asked = candidate in found.candidates
        yield "candidate" if asked else "base", candidate.name
    for what, why in found.left_out:
        yield "left out", f"{what}: {why}"
    yield "batch", ", ".join(map(str, settings.batches))
    if settings.threads != (0,):
        yield "threads", ", ".join(map(str, settings.threads))
    if work.found:
        yield "goes on", f"from {work.folder}, where {work.found} steps are done"
