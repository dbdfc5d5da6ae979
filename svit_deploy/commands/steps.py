"""Runs the steps of a pipeline: each as the command that it is, unless it is done."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from svit_deploy.commands.common import line
from svit_deploy.commands.done import Done, Work, work_of
from svit_deploy.commands.pipeline import (
    Step,
    can_be_steps,
    chosen,
    command_line,
    read_pipeline,
    with_changes,
)
from svit_deploy.commands.transcript import transcript
from svit_deploy.errors import SvitDeployError, UsageError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """A step, ready to run: its command, the line that would be typed, and what that names."""

    step: Step
    command: Any
    args: list[str]
    work: Work

    @property
    def typed(self) -> str:
        return shlex.join(["svit-deploy", *self.args])

    @property
    def replacing(self) -> list[str]:
        """The same line, for what it writes to be replaced where the command must be told so."""
        can = any(parameter.name == "force" for parameter in self.command.params)
        force = ["--force"] if can and "--force" not in self.args else []
        return [self.args[0], *force, *self.args[1:]]


def run_steps(
    context: typer.Context,
    file: Path,
    changes: Sequence[str],
    again: Sequence[str],
    state_file: Path,
    *,
    log_file: Path | None,
    dry_run: bool,
) -> None:
    """Runs a pipeline. All of its steps are read before the first one begins.

    Args:
        context: of the command `run`.
        changes: `STEP.OPTION=VALUE`.
        again: steps to do even if they are done.
        state_file: what is done, from run to run.
        log_file: what is printed.

    Raises:
        InputError: the pipeline, or the state, is damaged.
        UsageError: what `changes` and `again` name does not exist, or a step's values cannot work.
        SvitDeployError: as the step's command.
    """
    commands = can_be_steps(context.find_root().command)
    steps = with_changes(read_pipeline(file, commands), changes, commands)
    repeated = {name for word in again for name in chosen(steps, word, "--again")}
    planned = [_plan(step, commands[step.verb], file, context) for step in steps]
    done = Done.read(state_file)
    if dry_run:
        _show(planned, done, repeated, context)
        return
    with transcript(log_file, shlex.join(context.obj.command)):
        for one in planned:
            if one.step.name not in repeated and done.has(one.work):
                log.info("%s is done: %s", one.step.name, one.typed)
            else:
                _run(one, done, context)


def _plan(step: Step, command: Any, file: Path, context: typer.Context) -> Planned:
    """Reads a step as the command line would, and its settings as the command would."""
    args = command_line(step, command, file)
    with _of_step(f"{file}, {step.name}"):
        parsed = command.make_context(step.verb, args[1:], parent=context.parent)
        command.callback.check(parsed.params)
    return Planned(step, command, args, work_of(args, parsed.params))


@contextmanager
def _of_step(where: str) -> Iterator[None]:
    """Says of what cannot be read which step it is in."""
    usage_error: Any = typer.BadParameter.__base__
    try:
        yield
    except usage_error as error:
        message = error.format_message().rstrip(".")
        raise UsageError(f"{where}: {message}", "see the command's --help") from None
    except SvitDeployError as error:
        raise type(error)(f"{where}: {error.message}", error.fix) from None


def _run(one: Planned, done: Done, context: typer.Context) -> None:
    """Runs a step as the command that it is; what the pipeline wrote itself is replaced."""
    record, owned = done.record(one.work), done.owns(one.work)
    args = one.replacing if owned else one.args
    if owned or "--force" in args:  # else the command refuses what is in its way
        done.note(record)
    log.info("%s: %s", one.step.name, one.typed)
    start = time.monotonic()
    _invoke(one, args, context)
    done.finish(record)
    log.info("%s took %.1f s", one.step.name, time.monotonic() - start)


def _show(
    planned: Sequence[Planned], done: Done, repeated: set[str], context: typer.Context
) -> None:
    """What each step would do; of one that reads what is to be written first, only its command.

    Raises:
        SvitDeployError: what the run would end with.
    """
    missing, ahead = [], list[Work]()
    for one in planned:
        later = one.work.follows(ahead)
        if not later and one.step.name not in repeated and done.has(one.work):
            typer.echo(line(one.step.name, f"is done: {one.typed}"))
            continue
        ahead.append(one.work)
        typer.echo(line(one.step.name, one.typed))
        if later:
            typer.echo(line("", "looks at what it needs after the steps before it"))
            continue
        args = one.replacing if done.owns(one.work) else one.args
        try:
            _invoke(one, [args[0], "--dry-run", *args[1:]], context)
        except typer.Exit:
            pass
        except SvitDeployError as error:
            missing.append(error)
    if missing:
        raise missing[0]


def _invoke(one: Planned, args: Sequence[str], context: typer.Context) -> None:
    invocation = replace(context.obj, args=list(args))
    with one.command.make_context(
        one.step.verb, list(args[1:]), parent=context.parent, obj=invocation
    ) as inner:
        one.command.invoke(inner)
