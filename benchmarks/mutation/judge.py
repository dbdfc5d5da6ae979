"""What `verify` says of a bundle, and which place its report names first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutation.cases import Case
from mutation.graph import HEADS
from svit_deploy import api
from svit_deploy.bundle import MANIFEST, Bundle, open_bundle
from svit_deploy.errors import SvitDeployError
from svit_deploy.model.model import Model
from svit_deploy.tasks import Part
from svit_deploy.verify import run
from svit_deploy.verify.expected import Given, LiveReference, StoredReference
from svit_deploy.verify.exported import ModelUnderTest
from svit_deploy.verify.report import VerifyReport
from svit_deploy.verify.settings import VerifySettings

PLACE = re.compile(
    r"\b(features of stride \d+|(?:gate|block|injector|extractor)[ _]\d+|embedding|pyramid|head)\b"
)
OF_HEADS, BEHIND = ("heads by themselves",), "nothing before the heads differs"
SETTINGS = VerifySettings(threads=1)


@dataclass(frozen=True)
class Verdict:
    """Of one verification.

    Attributes:
        passed: whether the bundle was accepted.
        words: the verdict's line, or why there is none.
        named: the places that the first check with a place names, and the first check's name.
    """

    passed: bool
    words: str
    named: tuple[str, ...]


def verify(case: Case, bundle: Path, checkpoint: Path | None) -> Verdict:
    """As the command verifies; without a checkpoint against what the export recorded."""
    told: dict[str, Any] = {}
    if checkpoint is not None:
        told = {"arch": case.arch, "overrides": dict(case.told)}
    return _verdict(lambda: api.verify(bundle, SETTINGS, against=checkpoint, **told))


class Judge:
    """Verifies mutants of one bundle as the command would, without what tells nothing new.

    The reference is run once for all of them, and how a graph behaves in batches and with other
    thresholds is left out where its parity has failed already and said where.
    """

    def __init__(self, bundle: Bundle, model: Model | None) -> None:
        self.reference = StoredReference(bundle) if model is None else Remembered(bundle, model)

    def verify(self, folder: Path) -> Verdict:
        def report() -> VerifyReport:
            with parity_first():
                return run.verify_against(open_bundle(folder), self.reference, SETTINGS)

        return _verdict(report)


class Remembered(LiveReference):
    """A reference whose results are kept."""

    def __init__(self, bundle: Bundle, model: Model) -> None:
        super().__init__(bundle, model)
        self._known: dict[Any, Any] = {}

    def _once(self, key: Any, results: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = results()
        return self._known[key]

    def part(self, given: Given) -> Part:
        key = ("part", *map(id, given.images))
        return self._once(key, lambda: super(Remembered, self).part(given))

    def extreme(self, images: Iterable[Any], keep: Any) -> Any:
        images = list(images)
        key = (keep, *map(id, images))
        return self._once(key, lambda: super(Remembered, self).extreme(images, keep))


@contextmanager
def parity_first() -> Iterator[None]:
    """Leaves out a graph's behaviour where its parity has failed and said where."""
    check = run.check_behaviour

    def check_if_needed(model: ModelUnderTest, *rest: Any) -> None:
        if model.report.passed or not _named_by_failed(model.report):
            check(model, *rest)

    run.check_behaviour = check_if_needed
    try:
        yield
    finally:
        run.check_behaviour = check


def _verdict(report_of: Callable[[], VerifyReport]) -> Verdict:
    try:
        report = report_of()
    except SvitDeployError as error:  # the command ends with it, and with its exit code
        told = ("manifest",) if MANIFEST in error.message else ()
        return Verdict(False, error.message, (*_places(error.message), *told))
    if report.passed:
        return Verdict(True, report.verdict, ())
    first = next(check.name for check in report.checks if not check.passed)
    return Verdict(False, report.verdict, (*_named_by_failed(report), first))


def _named_by_failed(report: VerifyReport) -> tuple[str, ...]:
    """The places that the first failed check with a place names."""
    for check in report.checks:
        of_heads = check.name in OF_HEADS or check.detail.endswith(BEHIND)
        places = (HEADS,) if of_heads else _places(check.detail)
        if places and not check.passed:
            return places
    return ()


def _places(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(found.replace("_", " ") for found in PLACE.findall(text)))
