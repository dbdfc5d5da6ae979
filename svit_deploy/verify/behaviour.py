"""What must hold of any exported model: batches, repeats, gates out of view, other thresholds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from svit_deploy.errors import InputError
from svit_deploy.images.prepared import Prepared
from svit_deploy.model.result import Result
from svit_deploy.progress import Progress
from svit_deploy.verify.decisions import decision_distance
from svit_deploy.verify.expected import ExpectedResults
from svit_deploy.verify.exported import ModelUnderTest
from svit_deploy.verify.thresholds import check_other_thresholds
from svit_deploy.verify.words import number_of

BATCH_PIXELS = 2**21  # of a large batch: 41 images of 224x224, 2 of 800x1216


def check_behaviour(
    model: ModelUnderTest,
    images: Sequence[Prepared],
    reference: ExpectedResults,
    progress: Progress,
) -> None:
    """All checks, on some images of one size. One that the graph does not survive has failed."""
    checks: dict[str, Callable[[], None]] = {
        "batch invariance": lambda: check_batches(model, images),
        "determinism": lambda: check_determinism(model, images),
        "hidden gates": lambda: check_hidden_gates(model, images),
        "other thresholds": lambda: check_other_thresholds(model, images, reference),
    }
    for number, (name, run) in enumerate(checks.items()):
        progress.update(name, 0.7 + 0.3 * number / len(checks))
        try:
            run()
        except InputError as error:  # the graph ran so far, and must run here too
            model.report.check(name, False, error.message)


def check_batches(model: ModelUnderTest, images: Sequence[Prepared]) -> None:
    """An image alone, inside a batch, the reversed batch and large ones: the same result.

    A lone image has its mirror image for company. Large are the bundle's largest batch, as far as
    `BATCH_PIXELS` go, and one in between. Nothing to check where the graph takes one image at a
    time.
    """
    images = list(images[: model.settings.companions])
    given, (height, width) = len(images), images[0].size
    if given < 2:
        images.insert(0, _mirrored(images[0]))
    largest = min(model.bundle.manifest["batch"]["max"], max(2, BATCH_PIXELS // (height * width)))
    counts = sorted({(given + largest) // 2, largest} - {given}) if largest > given else []
    order = np.arange(len(images))
    with model.shipped() as engine:
        if engine.inputs()[0].shape[0] == 1:
            return
        alone = Result.concatenate([model.observe(engine, [image]) for image in images])

        def compare(numbers: np.ndarray) -> tuple[bool, str]:
            together = model.observe(engine, [images[number] for number in numbers])
            return model.compare(together, alone[numbers], model.rows(images))

        for numbers in (order, order[::-1]):
            ok, detail = compare(numbers)
            if not ok:
                break
        model.report.check("alone = inside a batch", ok, detail)
        for count in counts:
            ok, detail = compare(np.arange(count) % len(images))
            if not ok:
                break
        if counts:
            model.report.check("alone = inside a large batch", ok, f"batch {count}: {detail}")


def check_determinism(model: ModelUnderTest, images: Sequence[Prepared]) -> None:
    """Every output of every repeat equal to the last bit."""
    repeats, feeds = model.settings.repeats, model.task.feeds(images)
    with model.file() as engine:
        first, *others = [engine.run(feeds) for _ in range(repeats)]
    differ = sorted(
        {
            name
            for other in others
            for name in first
            if first[name].tobytes() != other[name].tobytes()
        }
    )
    detail = f"{', '.join(differ)} changed" if differ else f"{repeats} runs, every bit equal"
    model.report.check("deterministic", not differ, detail)


def check_hidden_gates(model: ModelUnderTest, images: Sequence[Prepared]) -> None:
    """A file without gate outputs computes what it did with its gates in view.

    Where two images do not agree, those count in which rounding can flip no decision.
    """
    if model.shows_gates:
        return
    with model.shipped() as engine:
        seen = model.observe(engine, images)
    with model.file() as engine:
        plain = model.outputs(engine, images)
    ok, words = model.compare_outputs(plain, seen.outputs)
    of = number_of(len(images), "image")
    if not ok:
        rows, thresholds = model.rows(images), model.thresholds
        distance = decision_distance(seen.selected.margin, thresholds, rows)
        clear = np.flatnonzero((distance > model.rounding[:, None]).all(axis=(1, 2)))
        of = f"{len(clear)} of {of}, where rounding flips no decision"
        if len(clear):
            outputs = [plain[number] for number in clear]
            ok, words = model.compare_outputs(outputs, seen[clear].outputs)
        else:
            words = "no image tells; more images may, or an export with its gate outputs does"
    model.report.check("alike without its gates in view", ok, f"{words} (in {of})")


def _mirrored(image: Prepared) -> Prepared:
    return dataclasses.replace(image, pixels=np.ascontiguousarray(image.pixels[:, :, ::-1]))
