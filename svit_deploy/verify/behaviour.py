"""What must hold of any exported model: batches, repeats, gates out of view, other thresholds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from svit_deploy.errors import InputError
from svit_deploy.images.prepared import Prepared
from svit_deploy.progress import Progress
from svit_deploy.verify.batches import check_batches
from svit_deploy.verify.decisions import decision_distance
from svit_deploy.verify.expected import ExpectedResults
from svit_deploy.verify.exported import ModelUnderTest
from svit_deploy.verify.thresholds import check_other_thresholds
from svit_deploy.verify.words import number_of


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
            model.close()
            model.report.check(name, False, error.message)


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
    with model.engine(model.in_view_as_it_runs()) as engine:
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
