"""A verification: what to compare with, then parity, then behaviour."""

from __future__ import annotations

from contextlib import closing
from dataclasses import fields
from typing import Any

from svit_deploy.bundle import Bundle
from svit_deploy.engines.runtimes import ONNXRUNTIME
from svit_deploy.engines.settings import EngineChoice, RunSettings
from svit_deploy.errors import UsageError
from svit_deploy.evaluate.labelled import open_labelled
from svit_deploy.evaluate.run import evaluate_labelled
from svit_deploy.evaluate.settings import EvaluateSettings
from svit_deploy.images import check_images, read_through
from svit_deploy.inference.engine import choose, require_run, tell_run
from svit_deploy.inference.places import needs_place, settings_there
from svit_deploy.inference.settings import PlaceSettings
from svit_deploy.machine.packages import require, require_torch
from svit_deploy.model.assumption import in_words
from svit_deploy.plan import RUN, Plan
from svit_deploy.progress import SILENT, Portion, Progress
from svit_deploy.verify.behaviour import check_behaviour
from svit_deploy.verify.expected import ExpectedResults, LiveReference, StoredReference
from svit_deploy.verify.exported import ModelUnderTest
from svit_deploy.verify.parity import Parity
from svit_deploy.verify.report import VerifyReport
from svit_deploy.verify.settings import VerifySettings


def verify_bundle(
    bundle: Bundle,
    settings: VerifySettings | None = None,
    progress: Progress = SILENT,
    plan: Plan = RUN,
) -> VerifyReport:
    """Verifies a bundle against its checkpoint, or against what the export recorded of it.

    Args:
        plan: is asked for what is needed before a checkpoint or an image is read.

    Returns:
        The report; `report.passed` says whether the bundle may be used.

    Raises:
        UsageError: annotations that the task has no use for.
        CapabilityError: what runs the bundle is missing, or a package that the reference needs.
        InputError: the checkpoint, the images or the graph cannot be read or run.
    """
    settings, task = settings or VerifySettings(), bundle.task
    if settings.annotations is not None and (settings.images is None or not task.takes_truth):
        raise UsageError(
            "--annotations needs a detector and the images that they are of",
            "add --images IMAGES, or leave it out",
        )
    plan.needs(require_run, bundle, settings)
    needs_place(plan, settings.ray, "verify")
    settings = settings_there(settings, settings.ray)
    runtime, _ = choose(bundle, settings)
    if not (runtime.runs_graphs and bundle.precision == "fp32"):  # edited graphs run there
        plan.needs(ONNXRUNTIME.require, bundle.model_path, EngineChoice())
    plan.needs(check_images, settings.images, task.medium)
    tell_run(plan, bundle, settings)
    if bundle.assumed:
        plan.tell("assumed", in_words(bundle.assumed))
    if settings.against is None:
        return _verify_against_recorded(bundle, settings, progress, plan)
    require_reference(bundle, plan, "verify --against")
    from svit_deploy.verify.checkpoint import load_reference_model

    truth = None
    if settings.annotations is not None:
        truth = task.truth(settings.annotations, bundle.config)
    images = read_through(
        settings.images,
        settings.max_images,
        progress,
        settings.labels,
        task.reader(bundle.config),
    )
    if truth is not None and images is not None:
        truth.check(images.names)
    model = load_reference_model(
        bundle,
        settings.against,
        arch=settings.arch,
        overrides=settings.overrides,
        allow_pickle=settings.allow_pickle,
        weights=settings.weights,
    )
    reference = LiveReference(bundle, model, images)
    tell_reference(plan, reference)
    plan.begin()
    return verify_against(bundle, reference, settings, progress, truth)


def require_reference(bundle: Bundle, plan: Plan, who: str) -> None:
    """Asks for what runs the reference of a checkpoint; `who` needs it."""
    plan.needs(
        require_torch,
        who,
        "the reference forward pass",
        "leave --against out to compare with the recorded samples",
    )
    for package, purpose in bundle.task.packages:
        plan.needs(require, package, who, purpose)


def tell_reference(plan: Plan, reference: ExpectedResults) -> None:
    """What is compared with."""
    plan.tell("against", reference.description)
    for note in reference.notes:
        plan.tell("note", note)


def _verify_against_recorded(
    bundle: Bundle, settings: VerifySettings, progress: Progress, plan: Plan
) -> VerifyReport:
    """Compares the bundle's samples, and evaluates the exported model on labelled images."""
    reference = StoredReference(bundle)
    tell_reference(plan, reference)
    if settings.images is None:
        plan.begin()
        return verify_against(bundle, reference, settings, progress)
    shared = (*fields(RunSettings), *fields(PlaceSettings))
    asked = EvaluateSettings(
        **{one.name: getattr(settings, one.name) for one in shared},
        images=settings.images,
        labels=settings.labels,
        annotations=settings.annotations,
        max_images=settings.max_images,
    )
    labelled = open_labelled(bundle, asked)  # what cannot be read is told before a long run
    plan.tell("evaluates", f"{len(labelled.source)} images, {labelled.told}")
    plan.begin()
    report = verify_against(bundle, reference, settings, Portion(progress, 0, 0.5))
    if report.passed:  # else the figures would be those of a broken file
        report.evaluate(evaluate_labelled(bundle, labelled, asked, Portion(progress, 0.5, 1)))
    return report


def verify_against(
    bundle: Bundle,
    reference: ExpectedResults,
    settings: VerifySettings | None = None,
    progress: Progress = SILENT,
    truth: Any = None,
) -> VerifyReport:
    """Verifies a bundle against what a given reference computes; see `verify_bundle`.

    Args:
        truth: annotations of the reference's images, as the bundle's task reads them.
    """
    report = VerifyReport(bundle, reference.count, reference.description)
    report.notes += reference.notes
    with closing(ModelUnderTest(bundle, settings or VerifySettings(), report)) as model:
        parity = Parity(model, reference, truth)
        parity.check_file()
        if report.passed:  # else what follows would repeat it in worse words
            check_behaviour(model, parity.compare(progress), reference, progress)
    return report
