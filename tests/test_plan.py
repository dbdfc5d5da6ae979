"""A plan: goes on where nothing is missing, and tells all of it in a dry run."""

from __future__ import annotations

import pytest

from svit_deploy.errors import CapabilityError, InputError, UsageError
from svit_deploy.plan import RUN, DryRun, Plan


def lacking(what: str, *, fix: str = "install it") -> None:
    raise CapabilityError(f"{what} is missing", fix)


def work(plan: Plan, done: list[str]) -> None:
    plan.needs(lacking, "a package")
    plan.needs(lacking, "a tool", fix="build it")
    plan.needs(lacking, "a package")
    plan.tell("model", "small")
    plan.begin()
    done.append("work")


def test_a_run_ends_at_the_first_thing_that_is_missing():
    with pytest.raises(CapabilityError, match="a package is missing; install it"):
        work(RUN, [])


def test_a_run_goes_on_where_nothing_is_missing():
    RUN.needs(print)
    RUN.tell("model", "small")
    RUN.begin()


def test_a_dry_run_notes_each_thing_once_and_does_no_work():
    done: list[str] = []
    with DryRun() as plan:
        work(plan, done)
    assert not done
    assert plan.lines == [("model", "small")]
    assert [str(error) for error in plan.missing] == [
        "a package is missing; install it.",
        "a tool is missing; build it.",
    ]
    assert plan.exit_code == plan.to_dict()["exit_code"] == 4


def test_the_first_missing_thing_gives_the_exit_code():
    with DryRun() as plan:
        plan.needs(lacking, "a package")
        raise InputError("the file is bad", "give another")
    assert plan.exit_code == 4
    with DryRun() as plan:
        raise UsageError("the option is bad", "give another")
    assert plan.exit_code == 2
    with DryRun() as plan:
        plan.begin()
    assert plan.exit_code == 0


def test_a_bug_stays_one():
    with pytest.raises(ZeroDivisionError), DryRun() as plan:
        plan.tell("share", str(1 / 0))
