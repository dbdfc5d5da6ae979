"""What must hold of any exported model: batches, repeats, everything kept, nothing kept."""

from __future__ import annotations

import numpy as np

from svit_deploy.compare import logits_error
from svit_deploy.export import names
from svit_deploy.graph_edit import set_scalars
from svit_deploy.verify.expected import Expectations, Expected
from svit_deploy.verify.subject import Observed, Subject

LARGEST = float(np.finfo(np.float32).max)


def check_invariance(subject: Subject, inputs: np.ndarray) -> None:
    """An image alone, inside a batch, and inside the reversed batch: the same result."""
    inputs = inputs[: subject.settings.companions]
    if len(inputs) < 2:
        subject.report.notes.append("batch invariance needs two images, it was not checked")
        return
    with subject.shipped() as engine:
        alone = Observed.concatenate([subject.observe(engine, image[None]) for image in inputs])
        together = subject.observe(engine, inputs)
        reverse = subject.observe(engine, np.ascontiguousarray(inputs[::-1]))
    backwards = Observed(reverse.logits[::-1], reverse.keep_mask[::-1], reverse.margin[::-1])
    ok, detail = True, f"{len(inputs)} images"
    for batch in (together, backwards):
        ok, detail = _same(subject, batch, alone)
        if not ok:
            break
    subject.report.check("alone = inside a batch", ok, detail)


def check_determinism(subject: Subject, inputs: np.ndarray) -> None:
    """Every output of every repeat equal to the last bit."""
    repeats = subject.settings.repeats
    with subject.shipped() as engine:
        first, *others = [engine.run({names.INPUT: inputs}) for _ in range(repeats)]
    differ = sorted(
        {
            name
            for other in others
            for name in first
            if first[name].tobytes() != other[name].tobytes()
        }
    )
    detail = f"{', '.join(differ)} changed" if differ else f"{repeats} runs, every bit equal"
    subject.report.check("deterministic", not differ, detail)


def check_extremes(subject: Subject, part: Expected, expectations: Expectations) -> None:
    """Every token kept, then none: thresholds at the ends of the float32 range."""
    for keep, threshold in (("all", -LARGEST), ("none", LARGEST)) if subject.gates else ():
        thresholds = {names.threshold_name(gate): threshold for gate in subject.gates}
        model = set_scalars(subject.observable(subject.model), thresholds)
        with subject.engine(model) as engine:
            actual = subject.observe(engine, part.inputs)
        expected = expectations.extreme(part, keep)
        if expected is not None:
            everywhere = np.full(len(subject.gates), threshold, np.float32)
            wanted = Observed(expected.logits, expected.keep_mask, expected.margin)
            ok, detail = _same(subject, actual, wanted, everywhere)
        else:
            ok = bool(np.isfinite(actual.logits).all())
            detail = "runs, logits are finite" if ok else "logits are not finite"
            kept = actual.keep_mask.sum(axis=2)
            low, high = (int(kept.min()), int(kept.max()))
            detail += f", {low} to {high} of {subject.config.num_tokens} tokens kept"
        subject.report.check(f"{keep} kept", ok, detail)


def _same(
    subject: Subject, actual: Observed, expected: Observed, thresholds: np.ndarray | None = None
) -> tuple[bool, str]:
    """Whether masks agree but for coin tosses, and logits of images with equal masks agree."""
    _, ok, detail = subject.compare_decisions(
        actual.keep_mask, expected.keep_mask, expected.margin, thresholds
    )
    same = ~(actual.keep_mask != expected.keep_mask).any(axis=(1, 2))
    error = logits_error(actual.logits[same], expected.logits[same])
    limit = subject.limits.logits
    if ok and not error <= limit:
        return False, f"logits differ by {error:.2g} (limit {limit:.2g})"
    return ok, f"{detail}, logits within {error:.2g}" if ok else detail
