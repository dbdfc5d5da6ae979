"""The folders that results are written to: pictures, and a file of numbers."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any

from svit_deploy.errors import InputError
from svit_deploy.images import PICTURE_SUFFIXES
from svit_deploy.io.folder import check_folder, write_folder


def result_folder(output: Path, numbers: str, results: str) -> AbstractContextManager[Path]:
    """Gives a folder that becomes `output`, whole, or vanishes; an earlier one is replaced.

    Args:
        numbers: the file by which an earlier one is known.
        results: what it holds, in words.

    Raises:
        InputError: `output` is a file, or a folder that holds anything else.
        ExportError: it cannot be written.
    """
    return write_folder(output.resolve(), lambda path: _refuse_others(path, numbers, results))


def check_result_folder(output: Path, numbers: str, results: str) -> None:
    """Raises what `result_folder` would raise at its start; call it before a long run."""
    check_folder(output.resolve(), lambda path: _refuse_others(path, numbers, results))


def _refuse_others(output: Path, numbers: str, results: str) -> None:
    """Lets nothing pass but a free place and an earlier result."""
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"{output} is a file", f"give a folder for the {results}")
    entries = list(output.iterdir())
    known = (numbers, ".DS_Store")
    ours = all(e.is_file() and (e.suffix == ".png" or e.name in known) for e in entries)
    if entries and not (ours and (output / numbers).is_file()):
        raise InputError(
            f"folder {output} holds files that are not {results}",
            "give a new folder or empty this one",
        )


def write_numbers(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def picture_file(number: int, name: str) -> str:
    """What an image's picture is called, after its place and its name."""
    return f"{number:05d}_{safe_name(name)}.png"


def safe_name(name: str) -> str:
    """Letters and digits of any script, `-`, `_` and `.`; at most 50, so at most 200 bytes."""
    path = PurePosixPath(name)
    stem = str(path.with_suffix("")) if path.suffix.lower() in PICTURE_SUFFIXES else name
    safe = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", stem))
    return safe.strip("._")[:50] or "image"
