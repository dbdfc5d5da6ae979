"""What a graph decides with other thresholds: everything kept, nothing kept, ties pruned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from svit_deploy import names
from svit_deploy.graph.edit import feed_scalars
from svit_deploy.images.prepared import Prepared
from svit_deploy.model.result import Result
from svit_deploy.verify.decisions import against_rule, beyond_budget
from svit_deploy.verify.expected import ExpectedResults
from svit_deploy.verify.exported import ModelUnderTest
from svit_deploy.verify.words import number_of

LARGEST = float(np.finfo(np.float32).max)
EXTREMES: tuple[tuple[Literal["all", "none"], float], ...] = (("all", -LARGEST), ("none", LARGEST))

Run = Callable[[Sequence[Prepared], np.ndarray], Result]
"""Runs images of one size with thresholds `[G]` float32."""


def check_other_thresholds(
    model: ModelUnderTest, images: Sequence[Prepared], reference: ExpectedResults
) -> None:
    """All checks, on images of one size; nothing where no threshold decides."""
    if not model.config.thresholds:
        return
    fed = [names.threshold_name(gate) for gate in model.gates]
    with model.engine(feed_scalars(model.in_view(), fed)) as engine:

        def run(images: Sequence[Prepared], thresholds: np.ndarray) -> Result:
            given = {name: np.array(value) for name, value in zip(fed, thresholds, strict=True)}
            return model.observe(engine, images, given)

        for keep, threshold in EXTREMES:
            everywhere = np.full(len(fed), threshold, np.float32)
            actual = run(images, everywhere)
            check_extreme(model, images, actual, keep, reference, everywhere)
        check_ties(model, images[:1], run)


def check_extreme(
    model: ModelUnderTest,
    images: Sequence[Prepared],
    actual: Result,
    keep: Literal["all", "none"],
    reference: ExpectedResults,
    thresholds: np.ndarray,
) -> None:
    """Every token kept, or none."""
    expected, rows = reference.extreme(images, keep), model.rows(images)
    if expected is None:
        ok, detail = _keeps(model, images, actual, keep)
    else:
        ok, detail = model.compare(actual, expected, rows, thresholds)
    model.report.check(f"{keep} kept", ok, detail)
    overflow = actual.selected.overflow
    if keep == "all" and rows is not None and overflow is not None:
        wrong = (overflow != beyond_budget(actual.selected, rows, thresholds)).any(axis=0)
        told = f"gate {wrong.argmax()} miscounts" if wrong.any() else f"{overflow.max()} tokens"
        model.report.check("overflow with all kept", not wrong.any(), told)


def check_ties(model: ModelUnderTest, images: Sequence[Prepared], run: Run) -> None:
    """A token whose margin is the threshold is pruned; hardly an image shows one by chance.

    Each threshold in turn becomes a margin that the gate itself computes, of a token that its
    budget would let through. What is before a gate stays the same, and so does that margin.
    """
    rows, thresholds = model.rows(images), model.thresholds.copy()
    for gate in model.gates:
        margin = run(images, thresholds).selected.margin[0, gate]
        ranked = -np.sort(-margin[np.isfinite(margin)])
        always = int(np.isposinf(margin).sum())
        room = len(ranked) if rows is None else min(len(ranked), int(rows[gate]) - always)
        if room > 0:
            thresholds[gate] = ranked[room // 2]
    selected = run(images, thresholds).selected
    ties = int((selected.margin == thresholds[None, :, None]).sum())
    wrong = against_rule(selected, thresholds, rows)
    detail = f"gate {wrong[0]} does not keep by {model.rule}" if wrong else number_of(ties, "tie")
    model.report.check("ties are pruned", not wrong, detail)


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
