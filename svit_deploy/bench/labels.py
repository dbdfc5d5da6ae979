"""How targets are typed, `PATH[@ENGINE[:PRECISION]]`, and told apart in a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from svit_deploy.bench.settings import BenchSettings, BenchTarget
from svit_deploy.engines.runtimes import check_options, runtime_named
from svit_deploy.engines.settings import EngineChoice
from svit_deploy.options import read_options


def split_target(target: Path, settings: BenchSettings) -> tuple[Path, str, BenchSettings]:
    """Takes `PATH[@ENGINE[:PRECISION]]` apart; a file or folder of such a name is a path.

    Returns:
        The path, what follows it with the @, and the settings for it.

    Raises:
        UsageError: no such engine or precision.
    """
    name, at, asked = target.name.rpartition("@")
    if not at or target.exists():
        return target, "", settings
    engine, _, precision = asked.partition(":")
    runtime = runtime_named(engine)
    if precision:
        settings = read_options(BenchSettings, settings, {"engine_precision": precision})
        check_options([runtime], EngineChoice(engine_precision=settings.engine_precision))
    path = target.with_name(name) if name else target.parent
    return path, at + asked, replace(settings, engine=engine)


def relabel(targets: Sequence[BenchTarget]) -> list[BenchTarget]:
    """Numbers targets that share a label."""
    labels = [target.label for target in targets]
    return [
        replace(target, label=f"{target.label}#{i + 1}")
        if labels.count(target.label) > 1
        else target
        for i, target in enumerate(targets)
    ]
