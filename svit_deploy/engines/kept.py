"""What runtimes build of a model on a machine: kept beside the model, and only used if it fits.

It is native code, so the rules of an engine's sidecar hold: a record says what it was made for, and
the sha256 of each file. What the record does not tell is dropped, and made anew.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svit_deploy.engines.device.cuda import Cuda
from svit_deploy.errors import SvitDeployError
from svit_deploy.io.files import cache_folder, hash_file, write_file
from svit_deploy.io.strict_json import read_json, write_json
from svit_deploy.names import MANIFEST

RECORD = "record.json"
SCHEMA_VERSION = 1
SCHEMA: dict[str, Any] = {"schema_version": int, "made_for": {str: str}, "files": {str: str}}

log = logging.getLogger(__name__)


class Kept:
    """A folder for what is built of one model on one GPU.

    Args:
        model: a file, or one of a bundle.
        kind: of what is built, the folder's name.
        made_for: all that it depends on beside the GPU and its driver: hashes, versions.

    Attributes:
        path: the folder, emptied of what does not fit; None where there is no place.
    """

    def __init__(self, model: Path, kind: str, made_for: Mapping[str, str], cuda: Cuda) -> None:
        gpu = cuda.gpu
        self._made_for = dict(made_for) | {
            "gpu": gpu.name,
            "compute_capability": gpu.compute_capability,
            "driver": str(cuda.call("cudaDriverGetVersion")),
        }
        self.path: Path | None = None
        try:
            folder = _place(model) / f"{kind}-{re.sub('[^a-z0-9]+', '-', gpu.name.lower())}"
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if any(folder.iterdir()) and (wrong := self._wrong(folder)):
                log.warning("%s is dropped, and made anew: %s", folder, wrong)
                shutil.rmtree(folder)
                folder.mkdir(mode=0o700)
            self.path = folder
        except (SvitDeployError, OSError) as error:
            log.warning("what is built of %s is not kept: %s", model.name, error)

    def keep(self) -> None:
        """Records the files that are there now; without that, they are not used again."""
        if self.path is None:
            return
        try:
            record = {
                "schema_version": SCHEMA_VERSION,
                "made_for": self._made_for,
                "files": _hashes(self.path),
            }
            with write_file(self.path / RECORD, "SVIT_DEPLOY_CACHE") as part:
                write_json(part, record)
        except (SvitDeployError, OSError) as error:
            log.warning("what was built cannot be kept: %s", error)

    def _wrong(self, folder: Path) -> str | None:
        """Why what is in the folder is not used."""
        if not (folder / RECORD).is_file():
            return "it has no record"
        try:
            told = read_json(folder / RECORD, SCHEMA, SCHEMA_VERSION, "it is made anew")
        except SvitDeployError as error:
            return error.message
        for name in sorted({*told["made_for"], *self._made_for}):
            then, now = told["made_for"].get(name), self._made_for.get(name)
            if then != now:
                return f"it was made for {name} {then}, here is {now}"
        if told["files"] != _hashes(folder):
            return "its files are not those that were written"
        return None


def _place(model: Path) -> Path:
    """Beside the model's bundle, or the model itself, where we may write; else with the user's."""
    folder = model.absolute().parent
    whole = folder if (folder / MANIFEST).is_file() else model.absolute()
    beside = whole.with_name(f"{whole.name}.cache")
    closed = not os.access(beside if beside.exists() else beside.parent, os.W_OK)
    if closed or os.environ.get("SVIT_DEPLOY_CACHE"):
        key = hashlib.sha256(str(beside).encode()).hexdigest()[:16]
        return cache_folder("engines") / f"{key}-{beside.name}"
    return beside


def _hashes(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file() and file != folder / RECORD)
    return {file.relative_to(folder).as_posix(): hash_file(file) for file in files}
