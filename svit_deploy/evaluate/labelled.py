"""Images of which it is known what is right: by labels, class folders or annotations."""

from __future__ import annotations

from dataclasses import dataclass, replace

from svit_deploy.bundle import Bundle
from svit_deploy.errors import UsageError
from svit_deploy.evaluate.settings import EvaluateSettings
from svit_deploy.images import ImageSource, source_of
from svit_deploy.images.class_folders import folder_labels
from svit_deploy.images.labels import read_labels
from svit_deploy.model.class_names import read_class_names
from svit_deploy.tasks.scores import Truth


@dataclass(frozen=True)
class Labelled:
    """Images of which it is known what is right.

    Attributes:
        truth: annotations, as the task reads them; None where images have labels.
        told: how it is known, in words.
        notes: what else a reader should know.
    """

    source: ImageSource
    truth: Truth | None
    told: str
    notes: tuple[str, ...] = ()


def open_labelled(bundle: Bundle, settings: EvaluateSettings) -> Labelled:
    """Finds the images and what is right for them; reads no picture.

    Raises:
        UsageError: nothing tells what is right, or what tells it is of no use to the task.
        InputError: images, labels or annotations that cannot be read or do not fit.
    """
    task = bundle.task
    for flag, given, taken in (
        ("--labels", settings.labels, task.takes_labels),
        ("--class-names", settings.class_names, task.takes_labels),
        ("--annotations", settings.annotations, task.takes_truth),
    ):
        if given is not None and not taken:
            raise UsageError(f"{flag} has no meaning for {bundle.name}", "leave it out")
    if task.takes_truth:
        return _annotated(bundle, settings)
    if task.takes_labels:
        if (labelled := with_labels(bundle, settings)) is not None:
            return labelled
        raise UsageError(
            "nothing tells the classes of the images",
            "give --labels FILE, a folder with one folder per class, or an .npz with labels",
        )
    raise UsageError(
        f"{bundle.name} gives {task.noun}, of which nothing says whether they are right",
        "use verify, bench or predict",
    )


def with_labels(bundle: Bundle, settings: EvaluateSettings) -> Labelled | None:
    """By a file of labels, else those of the images themselves, else class folders, if any."""
    medium, num_classes = bundle.task.reader(bundle.config), bundle.config.num_classes
    source = source_of(settings.images, medium)
    names, given = bundle.class_names, settings.class_names
    if given is not None and (settings.labels is not None or source.labels is not None):
        raise UsageError(
            "--class-names tells which class a folder is, and the images have labels",
            "leave it out",
        )
    if settings.labels is not None:
        values = read_labels(settings.labels, source.names)
        return Labelled(replace(source, labels=values), None, f"labels of {settings.labels.name}")
    if source.labels is not None:
        return Labelled(source, None, "labels of the images' own file")
    if given is not None:
        names = read_class_names(given, num_classes)
    found = folder_labels(source, num_classes, names, by_name=given is not None)
    if found is None:
        return None
    values, told = found
    return Labelled(replace(source, labels=values), None, told)


def _annotated(bundle: Bundle, settings: EvaluateSettings) -> Labelled:
    if settings.annotations is None:
        raise UsageError("a detector is evaluated on annotations", "add --annotations FILE")
    truth = bundle.task.truth(settings.annotations, bundle.config)
    source = source_of(settings.images, bundle.task.reader(bundle.config))
    notes = truth.check(source.names)
    return Labelled(source, truth, f"annotations of {settings.annotations.name}", notes)
