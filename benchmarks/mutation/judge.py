"""What `verify` says of a bundle, and which place its report names first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mutation.cases import Case
from mutation.graph import HEADS
from svit_deploy import api
from svit_deploy.errors import SvitDeployError
from svit_deploy.verify.report import VerifyReport

PLACE = re.compile(
    r"\b(features of stride \d+|(?:gate|block|injector|extractor)[ _]\d+|embedding|pyramid|head)\b"
)
OF_HEADS = ("heads by themselves",)


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
    told = {} if checkpoint is None else {"arch": case.arch, "overrides": dict(case.told)}
    try:
        report = api.verify(bundle, against=checkpoint, threads=1, **told)
    except SvitDeployError as error:  # the command ends with it, and with its exit code
        return Verdict(False, error.message, _places(error.message))
    return Verdict(report.passed, report.verdict, () if report.passed else named_by(report))


def named_by(report: VerifyReport) -> tuple[str, ...]:
    failed = [check for check in report.checks if not check.passed]
    for check in failed:
        places = (HEADS,) if check.name in OF_HEADS else _places(check.detail)
        if places:
            return (*places, failed[0].name)
    return (failed[0].name,)


def _places(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(found.replace("_", " ") for found in PLACE.findall(text)))
