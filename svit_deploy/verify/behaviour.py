"""What must hold of any exported model: batches, repeats, everything kept, nothing kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from svit_deploy import names
from svit_deploy.errors import InputError
from svit_deploy.graph.edit import set_scalars
from svit_deploy.images.prepared import Prepared
from svit_deploy.model.result import Result
from svit_deploy.progress import Progress
from svit_deploy.verify.decisions import beyond_budget, decision_distance
from svit_deploy.verify.expected import ExpectedResults
from svit_deploy.verify.exported import ModelUnderTest
from svit_deploy.verify.words import number_of

LARGEST = float(np.finfo(np.float32).max)
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
        "all kept, none kept": lambda: check_extremes(model, images, reference),
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


def check_extremes(
    model: ModelUnderTest, images: Sequence[Prepared], reference: ExpectedResults
) -> None:
    """Every token kept, then none: thresholds at the ends of the float32 range."""
    if not model.config.thresholds:
        return
    for keep, threshold in EXTREMES:
        thresholds = {names.threshold_name(gate): threshold for gate in model.gates}
        with model.engine(set_scalars(model.in_view(), thresholds)) as engine:
            actual = model.observe(engine, images)
        expected = reference.extreme(images, keep)
        if expected is None:
            ok, detail = _keeps(model, images, actual, keep)
        else:
            everywhere = np.full(len(model.gates), threshold, np.float32)
            ok, detail = model.compare(actual, expected, model.rows(images), everywhere)
        model.report.check(f"{keep} kept", ok, detail)
        rows, overflow = model.rows(images), actual.selected.overflow
        if keep == "all" and rows is not None and overflow is not None:
            lowest = np.full(len(model.gates), threshold, np.float32)
            wrong = (overflow != beyond_budget(actual.selected, rows, lowest)).any(axis=0)
            told = f"gate {wrong.argmax()} miscounts" if wrong.any() else f"{overflow.max()} tokens"
            model.report.check("overflow with all kept", not wrong.any(), told)


EXTREMES: tuple[tuple[Literal["all", "none"], float], ...] = (("all", -LARGEST), ("none", LARGEST))


def _keeps(
    model: ModelUnderTest, images: Sequence[Prepared], actual: Result, keep: str
) -> tuple[bool, str]:
    """Whether a run keeps all that its budgets allow, or only what may not be pruned."""
    config, rows, noun = model.config.at(images[0].size), model.rows(images), model.task.noun
    tokens = np.full(len(model.gates), config.num_tokens)
    if keep == "none":
        tokens = np.array([config.first_gated(gate) for gate in model.gates])
    elif rows is not None:
        tokens = rows
    kept = actual.selected.keep_mask.sum(axis=2)
    wrong = [gate for gate in model.gates if (kept[:, gate] != tokens[gate]).any()]
    if wrong:
        gate = wrong[0]
        fewest = number_of(int(kept[:, gate].min()), "token")
        return False, f"gate {gate} keeps {fewest} or more, not {tokens[gate]}"
    if not all(map(model.task.finite, actual.outputs)):
        return False, f"{noun} are not finite"
    return True, f"runs, as many tokens as there should be, {noun} are finite"


def _mirrored(image: Prepared) -> Prepared:
    return dataclasses.replace(image, pixels=np.ascontiguousarray(image.pixels[:, :, ::-1]))
