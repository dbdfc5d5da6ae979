"""How to read a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from svit_deploy.errors import UsageError
from svit_deploy.options import option


def parse_overrides(pairs: Sequence[str], flag: str = "--set") -> dict[str, str]:
    """Reads `KEY=VALUE`, any number of them.

    Raises:
        UsageError: there is no `=`, or nothing before it.
    """
    parsed = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(
                f"{flag} {pair!r} is not KEY=VALUE", f"write, e.g., {flag} num_heads=6"
            )
        parsed[key.strip()] = value
    return parsed


def preset_names() -> Iterable[str]:
    """What `--arch` takes beside files."""
    from svit_deploy.loading.presets import PRESETS

    return PRESETS


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """What a checkpoint's weights cannot tell, and whether its code may run.

    Attributes:
        overrides: fields of the architecture and their values, as typed.
    """

    arch: str | None = option(
        None,
        "Architecture: svit_s, deit_small, ... or a YAML file. By default recognised from "
        "the shapes of the weights.",
        metavar="NAME|YAML",
        choices=preset_names,
    )
    overrides: Mapping[str, str] = option(
        dict,
        "Set one field of the architecture, for example num_heads=6; may be repeated.",
        flag="--set",
        metavar="KEY=VALUE",
        many=True,
        parse=parse_overrides,
    )
    weights: str | None = option(
        None,
        "Entry of the checkpoint to take, for example model_ema; by default model or state_dict.",
        metavar="KEY",
    )
    allow_pickle: bool = option(
        False, "Unpickle the checkpoint, which can run any code in it. Dangerous."
    )
