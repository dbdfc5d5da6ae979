"""In which forms predictions are written, and what of a model's results they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from svit_deploy.bundle import Bundle
from svit_deploy.errors import UsageError
from svit_deploy.inference.stream import Seen
from svit_deploy.model.class_names import ClassNames, read_class_names
from svit_deploy.predict.settings import COCO, FORMATS, PICTURES, SUFFIXES, PredictSettings
from svit_deploy.tasks.runs import Show

Describe = Callable[[Seen], dict[str, Any]]


def choose_format(bundle: Bundle, output: Path, settings: PredictSettings) -> str:
    """What is asked for, else told by the output's name.

    Raises:
        UsageError: unknown, or not of the bundle's task.
    """
    form = settings.format or SUFFIXES.get(output.suffix.lower(), PICTURES)
    if form not in FORMATS:
        raise UsageError(f"--format {form!r} is unknown", f"use {', '.join(FORMATS)}")
    known = bundle.task.formats
    if form not in known:
        fix = f"use --format {' or '.join(known)}" if known else "use verify or bench"
        maps = "; visualize draws its token maps" if form == PICTURES else ""
        raise UsageError(
            f"{bundle.name} is of --task {bundle.task.name}, of which predict writes no {form}",
            fix + maps,
        )
    if (form == COCO) != (settings.annotations is not None):
        if form == COCO:
            raise UsageError(
                "COCO's results name pictures and categories by their ids",
                "add --annotations FILE that tells them, such as instances_val2017.json",
            )
        raise UsageError(f"--annotations has no meaning for {form}", "leave it out")
    return form


def choose_shown(bundle: Bundle, form: str, settings: PredictSettings) -> Show:
    """What of a result to show; raises UsageError for an option without a meaning."""
    for name in ("top_k", "min_score"):
        if getattr(settings, name) is not None and name not in bundle.task.shown_by:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} has no meaning for {bundle.name}", "leave it out")
    least = 0.0 if form == COCO else 0.3
    return Show(
        top_k=settings.top_k or 5,
        min_score=least if settings.min_score is None else settings.min_score,
    )


def choose_names(bundle: Bundle, settings: PredictSettings) -> ClassNames:
    """The names of the classes; raises InputError."""
    if settings.class_names is None:
        return bundle.class_names
    return read_class_names(settings.class_names, bundle.config.num_classes)


def describe_rows(bundle: Bundle, show: Show, classes: ClassNames) -> Describe:
    """An image's row: its name, what came out, and how many tokens each gate kept."""
    task = bundle.task

    def describe(seen: Seen) -> dict[str, Any]:
        row = {"image": seen.image.name}
        row |= task.describe(task.shown(seen.outputs, show), classes)
        return row | kept_tokens(seen)

    return describe


def describe_results(bundle: Bundle, show: Show, annotations: Path) -> Describe:
    """An image's detections as COCO's evaluation takes them.

    Raises:
        SvitDeployError: annotations that cannot be read, or do not fit the model.
    """
    task = bundle.task
    truth = task.truth(annotations, bundle.config, objects=False)

    def describe(seen: Seen) -> dict[str, Any]:
        return {"results": truth.results(seen.image, task.shown(seen.outputs, show))}

    return describe


def kept_tokens(seen: Seen) -> dict[str, Any]:
    """Those that each gate kept, always-kept ones included, if the graph tells."""
    if seen.keep_mask is None:
        return {}
    return {"kept_tokens": seen.keep_mask.sum(axis=1).tolist()}
