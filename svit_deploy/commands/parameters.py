"""Options of a settings class as parameters of a typer command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any

import typer

from svit_deploy.commands.completion import one_of
from svit_deploy.options import OptionField, options_of, read_options

SAVE = inspect.Parameter(
    "save_config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None,
        typer.Option(
            "--save-config", metavar="FILE", help="Write this command as a pipeline for `run`."
        ),
    ],
)


def with_options(
    settings: type[Any], *, step: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Puts a class's options in place of the parameter that a typer command annotates with it.

    The command gets one value of the class, made of what was typed. It can be a step of a
    pipeline and has --save-config, unless `step` is False; its `check` raises what is wrong with
    values of its parameters.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        options, parameters, taken = options_of(settings), [], ""
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            if parameter.annotation is settings:
                taken = parameter.name
                parameters += [_parameter(one) for one in options.values()]
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

        def check(typed: Mapping[str, Any]) -> Any:
            return read_options(settings, None, {name: typed[name] for name in options})

        def run(**typed: Any) -> None:
            if step and (file := typed.pop(SAVE.name)) is not None:
                typed["context"].obj.save(file, typed["context"])
            chosen = check(typed)
            rest = {name: value for name, value in typed.items() if name not in options}
            command(**rest, **{taken: chosen})

        parameters += [SAVE] * step
        wrapped: Any = functools.wraps(command)(run)
        wrapped.check = check
        wrapped.__signature__ = inspect.Signature(parameters)
        wrapped.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def _parameter(declared: OptionField) -> inspect.Parameter:
    """What typer makes an option of."""
    asked, default = declared.option, declared.field.default
    kind: Any = declared.kind
    if asked.many:
        kind, default = list[kind], None
    elif default is MISSING:
        default = inspect.Parameter.empty
    elif asked.parse is not None:
        default = asked.typed
    if default is None:
        kind |= None
    told: Any
    how: dict[str, Any] = {"metavar": asked.metavar, "help": asked.help}
    if asked.choices is not None:
        how["autocompletion"] = one_of(asked.choices)
    if asked.positional:
        told = typer.Argument(**how)
    else:
        flag = declared.flag
        if default is True:
            flag += f"/--no-{flag.removeprefix('--')}"
        limits: dict[str, Any] = {"min": asked.low, "max": asked.high}
        told = typer.Option(flag, **how, **limits)
    return inspect.Parameter(
        declared.field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, told],
    )
