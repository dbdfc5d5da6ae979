"""What must hold of any exported model: batches, repeats, everything kept, nothing kept."""

from __future__ import annotations

import numpy as np

from svit_deploy.compare import decision_distance, first_gated, logits_error
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
    backwards = reverse[::-1]
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


def check_hidden_gates(subject: Subject, inputs: np.ndarray) -> None:
    """A file without gate outputs computes what it did with its gates in view."""
    if subject.shows_gates:
        return
    with subject.shipped() as engine:
        seen = subject.observe(engine, inputs)
    with subject.file() as engine:
        plain = engine.run({names.INPUT: inputs})[names.LOGITS]
    # Images with a decision that rounding may turn could differ for good reason.
    distance = decision_distance(seen.margin, subject.thresholds, subject.rows)
    clear = (distance > subject.rounding[:, None]).all(axis=(1, 2))
    error, limit = logits_error(plain[clear], seen.logits[clear]), subject.limits.logits
    detail = f"logits of {clear.sum()} images within {error:.2g}, limit {limit:.2g}"
    subject.report.check("alike without its gates in view", error <= limit, detail)


def check_extremes(subject: Subject, part: Expected, expectations: Expectations) -> None:
    """Every token kept, then none: thresholds at the ends of the float32 range."""
    extremes = (("all", -LARGEST), ("none", LARGEST)) if subject.config.thresholds else ()
    for keep, threshold in extremes:
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
            ok, detail = _keeps(subject, actual, keep)
        subject.report.check(f"{keep} kept", ok, detail)


def _keeps(subject: Subject, actual: Observed, keep: str) -> tuple[bool, str]:
    """Whether a run keeps all that its budgets allow, or only what may not be pruned."""
    tokens = np.full(len(subject.gates), subject.config.num_tokens)
    if keep == "none":
        tokens = np.array([first_gated(subject.config, gate) for gate in subject.gates])
    elif subject.rows is not None:
        tokens = subject.rows
    kept = actual.keep_mask.sum(axis=2)
    wrong = [gate for gate in subject.gates if (kept[:, gate] != tokens[gate]).any()]
    if wrong:
        gate = wrong[0]
        return False, f"gate {gate} keeps {kept[:, gate].min()} tokens or more, not {tokens[gate]}"
    if not np.isfinite(actual.logits).all():
        return False, "logits are not finite"
    return True, "runs, as many tokens as there should be, logits are finite"


def _same(
    subject: Subject, actual: Observed, expected: Observed, thresholds: np.ndarray | None = None
) -> tuple[bool, str]:
    """Whether masks agree but for coin tosses, and logits of images with equal masks agree."""
    _, ok, detail = subject.compare_decisions(actual, expected, thresholds)
    same = ~(actual.decisions != expected.decisions).any(axis=(1, 2))
    error = logits_error(actual.logits[same], expected.logits[same])
    limit = subject.limits.logits
    if ok and error > limit:
        return False, f"logits differ by {error:.2g} (limit {limit:.2g})"
    return ok, f"{detail}, logits within {error:.2g}" if ok else detail
