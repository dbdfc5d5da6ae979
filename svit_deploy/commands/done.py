"""What is done of a pipeline: of each step what it read and wrote, so that it is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from svit_deploy.bench.labels import split_target
from svit_deploy.bench.settings import BenchSettings
from svit_deploy.errors import UsageError
from svit_deploy.io.files import write_file
from svit_deploy.io.strict_json import read_json, write_json
from svit_deploy.machine.environment import describe_environment

WRITES = ("output", "json_file", "html_file", "sweep_tokens")
"""Parameters of commands that name what is written."""
READS = ("arch", "plugin_library")
"""Those that may name a file and are no path; every path that is not written is read."""
MAX_RECORDS = 1000
_SCHEMA = {
    "schema_version": int,
    "records": [
        {
            "command": [str],
            "environment": str,
            "inputs": {str: str},
            "outputs": {str: str},
            "done": bool,
        }
    ],
}


@dataclass(frozen=True)
class Work:
    """A step's command line, and the files and folders that it names.

    Attributes:
        reads, writes: absolute paths.
        repeatable: whether all that it reads and writes is named: standard input is not.
    """

    command: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    repeatable: bool = True

    def follows(self, others: Iterable[Work]) -> bool:
        """Whether it reads what others write."""
        written = {Path(path) for other in others for path in other.writes}
        return any(written & {Path(read), *Path(read).parents} for read in self.reads)


def work_of(command: Sequence[str], values: Mapping[str, Any]) -> Work:
    """What a command line reads and writes.

    Args:
        values: of its parameters, as they were parsed.
    """
    reads, writes = [], []
    for name, value in values.items():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if name in WRITES and one is not None:
                writes.append(str(one))
            elif isinstance(one, Path) or (name in READS and one is not None):
                reads.append(str(_path(str(one))))
    paths = (*reads, *writes)
    return Work(
        tuple(command),
        tuple(str(Path(path).absolute()) for path in reads if path != "-"),
        tuple(str(Path(path).absolute()) for path in writes if path != "-"),
        "-" not in paths,
    )


def _path(text: str) -> Path:
    """A path without the engine that stands behind its @."""
    try:
        return split_target(Path(text), BenchSettings())[0]
    except UsageError:  # another @; the command says so
        return Path(text)


@dataclass
class Record:
    """A step that was begun: the sums of what it read, and, once done, of what it wrote."""

    command: list[str]
    environment: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    done: bool


@dataclass
class Done:
    """The records of a pipeline, in a file.

    Attributes:
        path: of the file, which is replaced whole.
    """

    path: Path
    records: list[Record] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Done:
        """What the file tells; nothing if it is not there.

        Raises:
            InputError: the file is damaged.
        """
        if not path.exists():
            return cls(path)
        content = read_json(path, _SCHEMA, 1, "remove it; every step is done again then")
        return cls(path, [Record(**record) for record in content["records"]])

    def has(self, work: Work) -> bool:
        """Whether it was done with the inputs that are there now, and its outputs are whole."""
        if not work.repeatable:
            return False
        done = [one for one in self.records if one.done and one.command == list(work.command)]
        return any(
            one.environment == _environment()
            and one.inputs == sums(work.reads)
            and one.outputs == sums(work.writes)
            and all(one.outputs.values())
            for one in done
        )

    def owns(self, work: Work) -> bool:
        """Whether all that stands where it writes was written by a step of this pipeline."""
        ours = {path for record in self.records for path in record.outputs}
        return all(path in ours or not Path(path).exists() for path in work.writes)

    def record(self, work: Work) -> Record:
        """Of a step that is about to begin, with what it reads as it is now."""
        command, nothing = list(work.command), dict.fromkeys(work.writes, "")
        return Record(command, _environment(), sums(work.reads), nothing, done=False)

    def note(self, record: Record) -> None:
        """Notes a step in place of whatever wrote to the same places."""
        others = [
            one
            for one in self.records
            if one.command != record.command and not one.outputs.keys() & record.outputs.keys()
        ]
        self.records = [*others[1 - MAX_RECORDS :], record]
        self._write()

    def finish(self, record: Record) -> None:
        """Notes that a step is done."""
        record.outputs, record.done = sums(record.outputs), True
        self.note(record)

    def _write(self) -> None:
        with write_file(self.path, "--state") as part:
            write_json(part, {"schema_version": 1, "records": list(map(asdict, self.records))})


def sums(paths: Iterable[str]) -> dict[str, str]:
    """Of each file or folder a sum of the names, sizes and times of change in it; "" of none."""
    return {path: _sum(Path(path)) for path in paths}


def _sum(path: Path) -> str:
    if not path.exists():
        return ""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            status = file.stat()
            line = [str(file.relative_to(path)), status.st_size, status.st_mtime_ns]
            digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


@cache
def _environment() -> str:
    """The sum of the machine and the installed versions."""
    told = json.dumps(describe_environment(), sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()
