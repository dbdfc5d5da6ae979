"""What tests say of a verification's report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from svit_deploy.model.model import Model
from svit_deploy.verify.report import Check, VerifyReport
from svit_deploy.verify.settings import VerifySettings

SETTINGS = VerifySettings(threads=1, repeats=2)


def check(report: VerifyReport, name: str) -> Check:
    """One check of a report by its name."""
    (found,) = [check for check in report.checks if check.name == name]
    return found


def refused(report: VerifyReport, *where: str) -> None:
    """The report refuses, clearly, and its verdict begins with what is wrong."""
    assert not report.passed, report.verdict
    assert report.verdict.startswith(f"FAIL broken: {where[0]}: "), report.verdict
    for words in where[1:]:
        assert words in report.verdict
    # What docs/verify.md promises: no fault of these is anywhere near its limit.
    wrong = [stage for stage in report.stages if stage.error > stage.limit]
    assert not wrong or wrong[0].error > 10 * wrong[0].limit


def first_stage(name: str) -> tuple[str, str]:
    """Where a verdict begins that names a stage."""
    return "every stage by itself", f"{name} is the first"


def with_config(**changes: Any) -> Callable[[Model], Model]:
    """Changes fields of a model's configuration."""
    return lambda model: replace(model, config=replace(model.config, **changes))
