"""Results on disk, so that a run can go on where it ended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import svit_deploy
from mutation.run import Record
from svit_deploy.machine.environment import cpu_model, installed_versions


def code_hash() -> str:
    """Of all the code that results depend on: this package's and the benchmark's."""
    digest = hashlib.sha256()
    for folder in (Path(svit_deploy.__file__).parent, Path(__file__).parent):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]


class Results:
    """Records by id, kept in a file if there is one.

    Raises:
        SystemExit: the file is of other code, another seed or another reference.
    """

    def __init__(self, path: Path | None, seed: int, recorded: bool) -> None:
        self.path, self.records = path, dict[str, Record]()
        self.made: dict[str, Any] = {
            "code": code_hash(),
            "seed": seed,
            "reference": "recorded" if recorded else "checkpoint",
            "processor": cpu_model(),
            "versions": installed_versions(),
        }
        if path is not None and path.exists():
            content = json.loads(path.read_text())
            for name in ("code", "seed", "reference"):
                if content["made"][name] != self.made[name]:
                    raise SystemExit(
                        f"{path} is of another {name} ({content['made'][name]}, here "
                        f"{self.made[name]}): give another file"
                    )
            self.records = {found["id"]: Record(**found) for found in content["records"]}

    def add(self, records: Sequence[Record]) -> None:
        """Keeps records; the file is whole at any time."""
        self.records |= {record.id: record for record in records}
        if self.path is None or not records:
            return
        found = [asdict(record) for _, record in sorted(self.records.items())]
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({"made": self.made, "records": found}, indent=1) + "\n")
        part.replace(self.path)
