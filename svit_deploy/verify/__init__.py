"""Parity of an exported model with its reference, gate by gate.

Three kinds of runs, all of the exported graph:

1. every stage by itself, on the reference's tokens and keep masks: no error hides behind
   another, and a wrong block is told from a wrong gate (`parity`);
2. as shipped: which decisions differ and by what margin, then logits and classes (`parity`);
3. behaviour: alone and in a batch, repeated, all tokens kept, none kept (`behaviour`).
"""

from __future__ import annotations

from collections.abc import Callable

from svit_deploy.bundle import Bundle
from svit_deploy.errors import InputError
from svit_deploy.progress import SILENT, Progress
from svit_deploy.verify.behaviour import (
    check_determinism,
    check_extremes,
    check_hidden_gates,
    check_invariance,
)
from svit_deploy.verify.expected import Expectations, Recomputed, Recorded
from svit_deploy.verify.parity import Parity
from svit_deploy.verify.report import VerifyReport
from svit_deploy.verify.subject import Subject, VerifySettings

__all__ = ["Recomputed", "Recorded", "VerifyReport", "VerifySettings", "verify_bundle"]


def verify_bundle(
    bundle: Bundle,
    expectations: Expectations,
    settings: VerifySettings | None = None,
    progress: Progress = SILENT,
) -> VerifyReport:
    """Verifies a bundle against what its reference computes.

    Args:
        expectations: `Recorded` (the bundle's reference.npz) or `Recomputed` (a checkpoint).

    Returns:
        The report; `report.passed` says whether the bundle may be used.
    """
    report = VerifyReport(bundle, expectations.count, expectations.description)
    report.notes += expectations.notes
    subject = Subject(bundle, settings or VerifySettings(), report)
    parity = Parity(subject, expectations)
    parity.check_file()
    if not report.passed:  # what follows would repeat it in worse words
        return report
    first = parity.compare(progress)
    behaviour: dict[str, Callable[[], None]] = {
        "batch invariance": lambda: check_invariance(subject, first.inputs),
        "determinism": lambda: check_determinism(subject, first.inputs),
        "hidden gates": lambda: check_hidden_gates(subject, first.inputs),
        "all kept, none kept": lambda: check_extremes(subject, first, expectations),
    }
    for number, (name, run) in enumerate(behaviour.items()):
        progress.update(name, 0.7 + 0.3 * number / len(behaviour))
        try:
            run()
        except InputError as error:  # the graph ran so far, and must run here too
            report.check(name, False, error.message)
    return report
