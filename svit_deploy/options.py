"""Options: fields of frozen dataclasses, which the command line and the API both read.

    @dataclass(frozen=True, kw_only=True)
    class RunSettings:
        threads: int = option(0, "Threads.", metavar="N", low=0)

`commands.parameters` makes `--threads N` of it, `read_options` makes the settings: of what was
typed, or of keywords.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from svit_deploy.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
OPTION = "option"
"""Where a field's metadata has its `Option`."""


@dataclass(frozen=True)
class Option:
    """How a field is given.

    Attributes:
        help: one line.
        metavar: the value's name in --help.
        flag: by default `--` and the field's name. A bool that is True by default also has the
            flag `--no-...`.
        kind: what is typed: str, int, float, bool or Path; by default what the field's default is.
        parse: makes the field's value of the text, given the flag for the error's sentence; of
            all texts of an option that may be repeated.
        typed: the default as it would be typed, if there is a parser.
        many: whether the option may be repeated.
        low, high: limits of a number.
        positional: an argument without a flag.
        after: inherited options, if there are such, that --help lists before this one.
        choices: gives values that a shell completes; others may be allowed, too.
    """

    help: str
    metavar: str | None = None
    flag: str = ""
    kind: type | None = None
    parse: Callable[[Any, str], Any] | None = None
    typed: str | None = None
    many: bool = False
    low: float | None = None
    high: float | None = None
    positional: bool = False
    after: tuple[str, ...] = ()
    choices: Callable[[], Iterable[str]] | None = None


def option(default: Any, help: str, **how: Any) -> Any:
    """A field that is an option.

    Args:
        default: of the field; `dict` for a new one each, MISSING for a field that must be given.
        how: attributes of `Option`.
    """
    metadata = {OPTION: Option(help, **how)}
    if default is dict:
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


# Options that stand in several classes; each is called with its default.
IMAGES = partial(
    option,
    help="Image folder, single image, list of images (.txt, or - for standard input), or .npz "
    "(images [n, H, W, 3] uint8).",
    metavar="PATH",
    kind=Path,
)
MAX_IMAGES = partial(
    option, help="Use only the first N images.", metavar="N", low=1, after=("arch", "overrides")
)
LABELS = partial(
    option,
    None,
    help="Labels of --images, to report the accuracy.",
    metavar="FILE",
    kind=Path,
)
ANNOTATIONS = partial(
    option,
    None,
    help="COCO annotations of --images, to report a detector's average precision.",
    metavar="FILE",
    kind=Path,
)
MAX_DELAY = partial(
    option,
    help="Milliseconds that an image waits for others to share its run with.",
    metavar="MS",
    low=0,
    high=10_000,
)
RAY = partial(
    option,
    None,
    metavar="local|ADDRESS",
    kind=str,
    choices=lambda: ("local", "auto"),
)
CLASS_NAMES = partial(
    option,
    None,
    help="Names of the classes in their order: text with one per line, or JSON.",
    metavar="FILE",
    kind=Path,
)


@dataclass(frozen=True)
class OptionField:
    """A field with its option."""

    field: Field[Any]

    @property
    def option(self) -> Option:
        found: Option = self.field.metadata[OPTION]
        return found

    @property
    def flag(self) -> str:
        name = self.field.name if self.option.positional else f"--{self.field.name}"
        return self.option.flag or name.replace("_", "-")

    @property
    def kind(self) -> type:
        """What is typed, once."""
        if self.option.kind is None and self.option.parse is None:
            known = self.field.default not in (MISSING, None)
            return type(self.field.default) if known and not self.option.many else str
        return self.option.kind or str

    def default(self) -> Any:
        if self.field.default_factory is not MISSING:
            return self.field.default_factory()
        if self.field.default is MISSING:
            raise UsageError(f"{self.flag} is missing", "give a value")
        return self.field.default

    def read(self, value: Any) -> Any:
        """The field's value; text is read as on the command line, None is the default."""
        parse, many = self.option.parse, self.option.many
        if value is None:
            return self.default()
        if isinstance(value, os.PathLike) and self.kind is str:
            value = os.fspath(value)
        if many and not isinstance(value, Mapping):
            texts = (value,) if isinstance(value, str) else tuple(value)
            return parse(texts, self.flag) if parse else texts
        if parse is not None:
            return parse(value, self.flag) if isinstance(value, str) else value
        if self.kind is str and isinstance(value, (int, float)):
            return str(value)
        if self.kind is bool and not isinstance(value, bool):
            raise UsageError(f"{self.flag} {value!r} is no switch", "give True or False")
        if self.kind is Path and isinstance(value, str):
            return Path(value)
        return self._number(value) if self.kind in (int, float) else value

    def words(self, value: Any) -> list[str]:
        """What is typed for a value, which is text where the option has a parser."""
        if isinstance(value, bool):
            return [self.flag if value else self.flag.replace("--", "--no-", 1)]
        texts = value if self.option.many else (value,)
        if isinstance(texts, Mapping):
            texts = [f"{key}={item}" for key, item in texts.items()]
        return [word for text in texts for word in (self.flag, str(text))]

    def _number(self, value: Any) -> Any:
        low, high, number = self.option.low, self.option.high, None
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = self.kind(value)
        if number is None or (number != value and not isinstance(value, str)):
            whole = "whole " if self.kind is int else ""
            raise UsageError(f"{self.flag} {value!r} is not a {whole}number", "give a number")
        if (low is not None and not number >= low) or (high is not None and not number <= high):
            fix = f"give {low:g} or more" if high is None else f"give {low or 0:g} to {high:g}"
            raise UsageError(f"{self.flag} {value} is out of range", fix)
        return number


def options_of(settings: type[Any]) -> dict[str, OptionField]:
    """The options of a class by the names of their fields, in the order of --help.

    Its own come before those that it inherits, but for what `Option.after` says.
    """
    given = {one.name: OptionField(one) for one in fields(settings) if OPTION in one.metadata}
    bases = (base for base in settings.__bases__ if is_dataclass(base))
    inherited = [name for base in bases for name in options_of(base)]
    order = [(*one.option.after, name) for name, one in given.items() if name not in inherited]
    names = dict.fromkeys(name for group in [*order, inherited] for name in group)
    return {name: given[name] for name in names if name in given}


def read_options(settings: type[T], base: T | None, given: Mapping[str, Any]) -> T:
    """Settings from values by the names of their fields.

    Args:
        base: has the fields that are not given; without it they have their defaults.
        given: values of the fields' types, or text as on the command line. None is the default.

    Raises:
        UsageError: an unknown name, a field that must be given, or a value that cannot work.
    """
    known, names = options_of(settings), [one.name for one in fields(settings)]
    values = {}
    for name, value in given.items():
        if name not in names:
            raise UsageError(f"there is no option {name!r}", f"use one of {', '.join(names)}")
        values[name] = known[name].read(value) if name in known else value
    if base is not None:
        return replace(base, **values)
    missing = {name: one.default() for name, one in known.items() if name not in values}
    return settings(**values, **missing)


def part_of(settings: Any, kind: type[T]) -> T:
    """Of settings the fields of a class that theirs inherits."""
    return kind(**{one.name: getattr(settings, one.name) for one in fields(kind)})


def words_of(settings: type[Any], given: Mapping[str, Any]) -> list[str]:
    """The words of a command line that gives values, by the names of their fields.

    Args:
        given: text where an option has a parser. Defaults need no words.
    """
    words = []
    for name, value in given.items():
        declared = options_of(settings)[name]
        needed = declared.field.default is MISSING and declared.field.default_factory is MISSING
        if needed or declared.read(value) != declared.default():
            words += declared.words(value)
    return words
