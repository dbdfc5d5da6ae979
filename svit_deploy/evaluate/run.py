"""An evaluation: images that are labelled, run and scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from svit_deploy.bundle import Bundle
from svit_deploy.errors import InputError
from svit_deploy.evaluate.labelled import Labelled, open_labelled
from svit_deploy.evaluate.recorded import RecordedSamples
from svit_deploy.evaluate.report import Evaluation, Kept, KeptTokens, kept_of
from svit_deploy.evaluate.settings import EvaluateSettings
from svit_deploy.images import check_images
from svit_deploy.images.prepared import Prepared
from svit_deploy.inference.engine import is_emulated, require_run, tell_run
from svit_deploy.inference.places import needs_place, open_run
from svit_deploy.inference.stream import Seen, Stream
from svit_deploy.model.result import Outputs
from svit_deploy.plan import RUN, Plan
from svit_deploy.progress import SILENT, Portion, Progress


@dataclass(frozen=True)
class Looked:
    """What an evaluation keeps of an image.

    Attributes:
        image: without its pixels.
        kept: what its gates kept, if the graph tells.
        recorded: what the reference made of it, if the export recorded that.
    """

    image: Prepared
    outputs: Outputs
    kept: Kept | None
    recorded: Outputs | None


def look_at(bundle: Bundle, samples: RecordedSamples) -> Callable[[Seen], Looked]:
    """Looks at images where they run."""

    def look(seen: Seen) -> Looked:
        image, recorded = seen.image.without_pixels(), samples.find(seen.image)
        return Looked(image, seen.outputs, kept_of(seen, bundle.config), recorded)

    return look


def evaluate_bundle(
    bundle: Bundle,
    settings: EvaluateSettings,
    progress: Progress = SILENT,
    plan: Plan = RUN,
) -> Evaluation:
    """Runs the bundle on labelled images and says how good it is.

    Raises:
        UsageError: nothing tells what is right, or a batch that the graph does not take.
        InputError: images, labels or annotations that cannot be read or do not fit.
        CapabilityError: the model cannot run here, or pycocotools is missing.
    """
    plan.needs(require_run, bundle, settings)
    needs_place(plan, settings.ray, "evaluate")
    plan.needs(check_images, settings.images, bundle.task.medium)
    labelled = open_labelled(bundle, settings)
    tell_run(plan, bundle, settings)
    plan.tell("images", f"{len(labelled.source)}, {labelled.told}")
    for note in labelled.notes:
        plan.tell("note", note)
    plan.begin()
    return evaluate_labelled(bundle, labelled, settings, progress)


def evaluate_labelled(
    bundle: Bundle, labelled: Labelled, settings: EvaluateSettings, progress: Progress = SILENT
) -> Evaluation:
    """The same with images that are opened already."""
    task, source, samples = bundle.task, labelled.source, RecordedSamples(bundle)
    scores, ours, theirs = (task.scores(bundle.config, labelled.truth) for _ in range(3))
    kept, broken, notes = KeptTokens(bundle.config), 0, list(labelled.notes)
    chosen = evenly_spread(len(source), settings.max_images)
    if chosen is not None:
        notes.append(f"{len(chosen)} of {len(source)} images, evenly spread")
    with open_run(bundle, settings, look_at(bundle, samples)) as opened:
        running = Portion(progress, 0, 0.9)
        stream = Stream(opened, bundle, source, running, chosen)
        for looked in stream:
            scores.add(looked.image, looked.outputs)
            kept.add(looked.kept)
            broken += not task.finite(looked.outputs)
            if looked.recorded is not None:
                ours.add(looked.image, looked.outputs)
                theirs.add(looked.image, looked.recorded)
    if not scores.images:
        raise InputError("none of the images could be read", "give pictures that can be read")
    if is_emulated(bundle, settings):
        notes.append("bfloat16 is emulated on the CPU: float32 operators, every result rounded")
    if bundle.config.num_gates and not bundle.has_gate_outputs:
        notes.append("the graph was exported without gate outputs and does not show what it keeps")
    return Evaluation(
        bundle=bundle,
        told=labelled.told,
        engine=opened.told,
        batch=opened.cut,
        seed=settings.seed,
        images=scores.images,
        measures=scores.measures(
            settings.seed,
            lambda done: progress.update("resampling the images", 0.9 + 0.1 * done),
        ),
        kept=kept,
        broken=broken,
        skipped=stream.skipped,
        recorded=(ours.images, task.judge_scores(ours, theirs)) if ours.images else None,
        seconds=stream.seconds,
        engine_seconds=stream.engine_seconds,
        notes=notes,
    )


def evenly_spread(count: int, wanted: int | None) -> set[int] | None:
    """Which of so many images are run, if not all are."""
    if wanted is None or wanted >= count:
        return None
    return set(np.linspace(0, count - 1, wanted).astype(int).tolist())
