"""Pipelines: command lines as a YAML file has them, one step each.

    steps:
      - export: {source: svit_s.pth, output: out, tokens: dynamic}
      - bench: {targets: [out], batch: "1,8"}

A step's options are the command's own, by their flags or by the fields of its settings, and their
values are what would be typed. So a step is nothing but a command line, and a command line can be
written as a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from svit_deploy.commands.parameters import SAVE
from svit_deploy.errors import InputError, UsageError
from svit_deploy.io.strict_yaml import read_yaml
from svit_deploy.io.text import shown

MAX_STEPS = 100
UNSAID = ("help", "dry_run", SAVE.name)
"""Parameters that are about the command line itself."""
Value = str | list[str] | dict[str, str]


@dataclass(frozen=True)
class Step:
    """A command and its options by name.

    Attributes:
        name: the verb; with its number, `export#2`, where there are several of the verb.
    """

    name: str
    verb: str
    options: Mapping[str, Value]


def can_be_steps(group: Any) -> dict[str, Any]:
    """The commands of the program that a pipeline may have, by name."""
    return {
        verb: command
        for verb, command in group.commands.items()
        if any(parameter.name == SAVE.name for parameter in command.params)
    }


def read_pipeline(path: Path, verbs: Iterable[str]) -> list[Step]:
    """Reads the steps of a file, in their order.

    Args:
        verbs: that can be steps.

    Raises:
        InputError: the file cannot be read, is no list of steps, or has a verb that is none.
    """
    content = read_yaml(path, as_text=True)
    found = content.get("steps") if isinstance(content, dict) and len(content) == 1 else None
    form = "write 'steps:', and below it a list of '- COMMAND: {OPTION: VALUE, ...}'"
    if not isinstance(found, list) or not 0 < len(found) <= MAX_STEPS:
        raise InputError(f"{path} is no list of 1 to {MAX_STEPS} steps", form)
    steps = []
    for number, step in enumerate(found, 1):
        if not isinstance(step, dict) or len(step) != 1:
            raise InputError(f"{path}: step {number} is not one command and its options", form)
        ((verb, options),) = step.items()
        if verb not in verbs:
            raise InputError(
                f"{path}: step {number}, {shown(verb)!r}, is no command that can be a step",
                _nearest(str(verb), verbs),
            )
        if not isinstance(options, dict):
            raise InputError(f"{path}: step {number} is not '{verb}: {{OPTION: VALUE, ...}}'", form)
        for name, value in options.items():
            if not isinstance(name, str) or not _is_value(value):
                reason = f"{path}: {shown(name)!r} of step {number}, {verb}, has no value"
                raise InputError(reason, "give a text, a list of texts, or KEY: TEXT")
        steps.append((verb, options))
    return _named(steps)


def _is_value(value: Any) -> bool:
    items = list(value.values()) if isinstance(value, dict) else value
    items = items if isinstance(items, list) else [items]
    return bool(items) and all(isinstance(item, str) and item for item in items)


def _named(steps: Sequence[tuple[str, Mapping[str, Value]]]) -> list[Step]:
    several, seen, named = Counter(verb for verb, _ in steps), Counter[str](), []
    for verb, options in steps:
        seen[verb] += 1
        name = f"{verb}#{seen[verb]}" if several[verb] > 1 else verb
        named.append(Step(name, verb, options))
    return named


def chosen(steps: Sequence[Step], name: str, flag: str) -> list[str]:
    """The names of the steps that a word means: a step's name, or a verb for all of its steps.

    Raises:
        UsageError: there is no such step.
    """
    found = [step.name for step in steps if name in (step.name, step.verb)]
    if not found:
        known = dict.fromkeys(known for step in steps for known in (step.name, step.verb))
        raise UsageError(f"{flag}: there is no step {name!r:.80}", _nearest(name, known))
    return found


def with_changes(
    steps: Sequence[Step], texts: Iterable[str], commands: Mapping[str, Any]
) -> list[Step]:
    """The steps after `--set STEP.OPTION=VALUE`, any number of them.

    An option that is given several times gets all of these values; an empty value takes it away.

    Raises:
        UsageError: another form, or no such step or option.
    """
    given: dict[tuple[str, str], list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        name, dot, option = key.partition(".")
        if not (equals and dot and option):
            raise UsageError(
                f"--set {text!r:.80} is not STEP.OPTION=VALUE", "write, e.g., --set bench.batch=8"
            )
        for step in chosen(steps, name, "--set"):
            given.setdefault((step, option), []).append(value)
    changed = {step.name: dict(step.options) for step in steps}
    for (name, option), values in given.items():
        command = commands[name.partition("#")[0]]
        parameter = _parameter(command, option, UsageError, f"--set {name}")
        options = changed[name]
        for known in [one for one in options if one in _spellings(parameter)]:
            del options[known]
        if values != [""]:
            options[option] = values if len(values) > 1 else values[0]
    return [replace(step, options=changed[step.name]) for step in steps]


def command_line(step: Step, command: Any, path: Path) -> list[str]:
    """What would be typed for a step, behind the program's name.

    Args:
        command: typer's, of the verb.
        path: of the pipeline, for what is wrong.

    Raises:
        InputError: an option that the command does not have, or has twice, or a value of a form
            that it cannot have.
    """
    flags, arguments, seen = [], [], set()
    for name, value in step.options.items():
        where = f"{path}, {step.name}"
        parameter = _parameter(command, name, InputError, where)
        if parameter.name in seen:
            raise InputError(f"{where}: {name} is given twice", "leave one of them out")
        seen.add(parameter.name)
        if isinstance(value, dict):
            value = [f"{key}={text}" for key, text in value.items()]
        texts = value if isinstance(value, list) else [value]
        if parameter.param_type_name == "argument":
            several = parameter.nargs == -1
            if len(texts) > 1 and not several:
                raise InputError(f"{where}: {name} takes one value", "leave the others out")
            arguments.append((parameter, texts))
        elif parameter.is_flag:
            flags += _switch(parameter, texts, f"{where}: {name}")
        else:
            flag = _flag(parameter)
            parts = texts if parameter.multiple else [",".join(texts)]
            flags += [f"{flag}={text}" for text in parts]
    arguments.sort(key=lambda one: command.params.index(one[0]))
    return [step.verb, *flags, "--", *(text for _, texts in arguments for text in texts)]


def _switch(parameter: Any, texts: Sequence[str], where: str) -> list[str]:
    if texts not in (["true"], ["false"]):
        raise InputError(f"{where} is a switch", "write true or false")
    on = texts == ["true"]
    if on == bool(parameter.default):
        return []
    return parameter.opts[:1] if on else parameter.secondary_opts[:1]


def saved(context: Any) -> str:
    """The pipeline of a command line: what was typed of its options, as a YAML file's text."""
    options: dict[str, Any] = {}
    for parameter in context.command.params:
        typed = context.get_parameter_source(parameter.name)
        if parameter.name in UNSAID or typed is None or typed.name != "COMMANDLINE":
            continue
        value = context.params[parameter.name]
        if isinstance(value, (list, tuple)):
            value = [str(one) for one in value]
        elif not isinstance(value, (bool, int)):
            value = str(value)
        options[_canonical(parameter)] = value
    steps = {"steps": [{context.command.name: options}]}
    return yaml.safe_dump(steps, sort_keys=False, allow_unicode=True, width=10_000)


def _parameter(command: Any, name: str, error: type[InputError | UsageError], where: str) -> Any:
    """The parameter of a command that a name in a pipeline means."""
    known = {word: one for one in command.params for word in _spellings(one)
             if one.name not in UNSAID}  # fmt: skip
    if name not in known:
        names = dict.fromkeys(map(_canonical, known.values()))
        raise error(f"{where}: there is no option {shown(name)!r}", _nearest(name, known, names))
    return known[name]


def _spellings(parameter: Any) -> set[str]:
    """A flag without its dashes, with - or _, and the field of the settings or the argument."""
    flag = _canonical(parameter)
    return {flag, flag.replace("-", "_"), parameter.name}


def _canonical(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.name)
    return _flag(parameter).removeprefix("--")


def _flag(parameter: Any) -> str:
    return next(flag for flag in parameter.opts if flag.startswith("--"))


def _nearest(word: str, known: Iterable[str], names: Iterable[str] = ()) -> str:
    """What to use instead of a word that is unknown.

    Args:
        names: to list where none is near; all that are known by default.
    """
    known = list(known)
    near = get_close_matches(word, known, 1)
    return f"use {near[0]}" if near else f"use one of {', '.join(names or known)}"
