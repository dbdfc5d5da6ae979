"""Runs a model on images and writes what came out."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from svit_deploy.bundle import Bundle
from svit_deploy.errors import InputError
from svit_deploy.images import ImageSource, check_images, source_of
from svit_deploy.inference.engine import require_run, runs_on, tell_run
from svit_deploy.inference.job import Opened
from svit_deploy.inference.places import needs_place, open_run
from svit_deploy.inference.stream import Image, Ran, Seen, Stream
from svit_deploy.io.files import check_writable, write_file
from svit_deploy.io.journal import Journal
from svit_deploy.model.class_names import ClassNames
from svit_deploy.plan import RUN, Plan
from svit_deploy.predict.folder import check_result_folder, picture_file, result_folder
from svit_deploy.predict.formats import (
    choose_format,
    choose_names,
    choose_shown,
    describe_results,
    describe_rows,
)
from svit_deploy.predict.pictures import RESULTS, draw_pictures, refuse_nothing, write_pictures
from svit_deploy.predict.settings import PICTURES, PredictSettings
from svit_deploy.predict.tables import WRITERS, require_writer
from svit_deploy.progress import SILENT, Progress
from svit_deploy.tasks.runs import Show

log = logging.getLogger(__name__)

T = TypeVar("T")

PREDICTIONS = "predictions"


def predict_images(
    bundle: Bundle,
    output: Path,
    settings: PredictSettings,
    progress: Progress = SILENT,
    plan: Plan = RUN,
) -> list[Path]:
    """Writes a file of predictions, or a folder with one picture per image and predictions.json.

    Either appears complete or not at all; an earlier one is replaced. What is done of a file when
    the run ends early is kept beside it, and the same call goes on from there.

    Returns:
        The files written.

    Raises:
        UsageError: a form that the task does not have, or an option without a meaning.
        InputError: nothing to draw, a picture that cannot be read or run, or a folder that holds
            something else.
        CapabilityError: a package that the form needs is missing, or what runs the bundle.
        ExportError: `output` cannot be written, or what is kept beside it is of another run.
    """
    form = choose_format(bundle, output, settings)
    show, classes = choose_shown(bundle, form, settings), choose_names(bundle, settings)
    if form == PICTURES:
        refuse_nothing(bundle)
        plan.needs(check_result_folder, output, RESULTS, PREDICTIONS)
    else:
        plan.needs(require_writer, form)
        plan.needs(check_writable, output, "-o")
    plan.needs(require_run, bundle, settings)
    needs_place(plan, settings.ray, "predict")
    plan.needs(check_images, settings.images, bundle.task.medium)
    source = source_of(settings.images, bundle.task.reader(bundle.config))
    limit = min(len(source), settings.max_images or len(source))
    tell_run(plan, bundle, settings)
    plan.tell("images", f"{limit} ({source.kind})")
    files = [*map(picture_file, range(limit), source.names), RESULTS]
    plan.writes(*([output] if form != PICTURES else [output / file for file in files]))
    plan.begin()
    if form == PICTURES:
        return _pictures(bundle, output, source, limit, settings, progress, show, classes)
    return _rows(bundle, output, form, source, limit, settings, progress, show, classes)


def _pictures(
    bundle: Bundle,
    output: Path,
    source: ImageSource,
    limit: int,
    settings: PredictSettings,
    progress: Progress,
    show: Show,
    classes: ClassNames,
) -> list[Path]:
    with (
        result_folder(output, RESULTS, PREDICTIONS) as folder,
        _running(bundle, settings, draw_pictures(bundle, show, classes)) as opened,
    ):
        stream = Stream(opened, bundle, source, progress, range(limit))
        files = write_pictures(stream, folder, show)
        _tell_skipped(stream, stream.done)
    return [output / file for file in files]


def _rows(
    bundle: Bundle,
    output: Path,
    form: str,
    source: ImageSource,
    limit: int,
    settings: PredictSettings,
    progress: Progress,
    show: Show,
    classes: ClassNames,
) -> list[Path]:
    describe = describe_rows(bundle, show, classes)
    if settings.annotations is not None:
        describe = describe_results(bundle, show, settings.annotations)
    run = {
        "model_sha256": bundle.model_sha256,
        "runs_on": runs_on(bundle, settings),
        "format": form,
        **asdict(show),
        "classes": _digest(classes.names),
        "annotations": settings.annotations and settings.annotations.name,
        "images": limit,
        "names": _digest(source.names[:limit]),
    }
    with Journal[int](output.with_name(f"{output.name}.partial"), run) as journal:
        todo = set(range(limit)) - journal.done
        if todo:
            with _running(bundle, settings, lambda seen: (seen.number, describe(seen))) as opened:
                stream = Stream(opened, bundle, source, progress, todo)
                for number, row in stream:
                    journal.add(number, row)
                _tell_skipped(stream, len(journal.done))
        with write_file(output, "-o") as part:
            WRITERS[form](journal.rows(), part)
    return [output]


def _running(
    bundle: Bundle, settings: PredictSettings, look: Callable[[Seen], T]
) -> AbstractContextManager[Opened[Image, Ran[T]]]:
    """What looks at images where they run; raises InputError where outputs are no numbers."""
    task = bundle.task

    def look_at_numbers(seen: Seen) -> T:
        if not task.finite(seen.outputs):
            raise InputError(
                f"the {task.noun} of {seen.image.name} are not finite",
                "run svit-deploy verify: this bundle should not be used",
            )
        return look(seen)

    return open_run(bundle, settings, look_at_numbers)


def _tell_skipped(stream: Stream[Any], done: int) -> None:
    """Warns of skipped pictures; raises InputError if there are no others."""
    if not done:
        raise InputError("none of the images could be read", "give pictures that can be read")
    if stream.skipped:
        log.warning("%d of %d pictures were skipped", len(stream.skipped), stream.total)


def _digest(names: tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()
