"""What a shell completes: values of options, presets, bundles. Where there are none, its paths."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable

from svit_deploy.names import MANIFEST

Completer = Callable[[str], list[str]]
"""From what is typed of a word to the words that it may become."""


def one_of(choices: Callable[[], Iterable[str]]) -> Completer:
    """Completes what begins as it is typed."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices() if choice.startswith(incomplete)]

    return complete


def complete_bundle(incomplete: str) -> list[str]:
    """Folders that an export wrote, up to two below what is typed."""
    # Text, not paths: what begins with ./ must go on so.
    patterns = (f"{glob.escape(incomplete)}{deep}/{MANIFEST}" for deep in ("*", "*/*"))
    found = [path for pattern in patterns for path in glob.iglob(pattern)]  # noqa: PTH207
    bundles = (path.removesuffix(f"/{MANIFEST}") for path in found)
    return sorted(path for path in bundles if not any(map(str.isspace, path)))  # bash splits these
