"""Runs a command in this process, and watches what it says, takes, opens and leaves."""

from __future__ import annotations

import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import svit_deploy
from svit_deploy.cli import main
from svit_deploy.errors import EXIT_OK
from tests.fuzz.oracle import End, Snapshot, snapshot

HEAVY = (
    "onnx",
    "onnxruntime",
    "torch",
    "torchvision",
    "PIL.Image",
    "pycocotools.coco",
    "matplotlib",
)
"""What processes import before they are forked."""
MAX_ADDRESSES = 8 * 2**30
OUTPUT = "out"
"""What a command without -o writes, if anything."""
SYSTEM = tuple(
    str(Path(path).resolve())
    for path in (
        *(
            sys.prefix,
            sys.base_prefix,
            Path(svit_deploy.__file__).parent,
            Path(__file__).parent.parent,
        ),
        *("/usr", "/lib", "/lib64", "/etc", "/proc", "/sys", "/dev"),
    )
)
PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")


class Watch:
    """Notes files that are opened elsewhere than allowed, and programs that are started."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] = ()
        self.mine = ""
        self.found: list[str] | None = None
        sys.addaudithook(self._note)

    @contextmanager
    def over(self, folder: Path, *readable: Path) -> Iterator[list[str]]:
        """Lets pass what is in the folder, and for reading what is in the others."""
        self.mine = str(folder)
        self.allowed = (*SYSTEM, *map(str, readable))
        self.found = found = []
        try:
            yield found
        finally:
            self.found = None

    def _note(self, event: str, args: tuple[object, ...]) -> None:
        if self.found is None or (event != "open" and event not in PROGRAMS):
            return
        found, self.found = self.found, None  # what follows may open files itself
        try:
            if event != "open":
                found.append(f"{event} {args[0]!r:.200}")
            elif isinstance(args[0], str | bytes):
                path = os.path.realpath(os.fsdecode(args[0]))
                flags = args[2] if isinstance(args[2], int) else 0
                writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) and path != os.devnull
                if writes and Path(path).is_dir():  # for a temporary file without a name
                    return
                if not _is_below(path, (self.mine, *(() if writes else self.allowed))):
                    found.append(f"{'to write ' if writes else ''}{path}")
        finally:
            self.found = found


def _is_below(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def run_command(folder: Path, args: Sequence[str], watch: Watch, *readable: Path) -> End:
    """Runs a command line in a folder, whose parent must not change either.

    Args:
        readable: folders with files that the command line names.
    """
    os.chdir(folder)
    before = snapshot(folder.parent)
    given = sum(
        entry[0] for path, entry in before.items() if entry and _is_below(path, [str(folder)])
    )
    start, memory = _processor_time(), _reset_peak()
    with captured() as texts, watch.over(folder, *readable) as outside:
        code = main(["--no-progress", *args])
    output = str(folder / (args[args.index("-o") + 1] if "-o" in args else OUTPUT))
    written = [output] if code == EXIT_OK else [output, f"{output}.partial"]  # to go on from
    after = snapshot(folder.parent)
    return End(
        code,
        *texts,
        cpu_s=_processor_time() - start,
        grown=_peak() - memory,
        given=given,
        outside=tuple(dict.fromkeys(outside)),
        changed=tuple(_changes(before, after, written)),
        output=any(_is_below(path, [output]) for path in after.keys() - before.keys()),
    )


def _changes(before: Snapshot, after: Snapshot, written: Sequence[str]) -> list[str]:
    paths = sorted(before.keys() | after.keys())
    return [
        path
        for path in paths
        if (before.get(path, 0) != after.get(path, 0)) and not _is_below(path, written)
    ]


def limit_addresses() -> None:
    """A hostile file may not take the machine down that finds it."""
    limit = _status("VmSize") + MAX_ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _processor_time() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


@contextmanager
def captured() -> Iterator[list[str]]:
    """Standard output and error, of native code, too; the list is filled at the end."""
    texts: list[str] = []
    streams = (sys.stdout, sys.stderr)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        saved = [os.dup(stream.fileno()) for stream in streams]
        for stream, file in zip(streams, (out, err), strict=True):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
        try:
            yield texts
        finally:
            for stream, kept in zip(streams, saved, strict=True):
                stream.flush()
                os.dup2(kept, stream.fileno())
                os.close(kept)
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode("utf-8", "replace"))
