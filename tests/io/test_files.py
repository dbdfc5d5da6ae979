"""Files that are written whole or not at all, and what a killed process leaves of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from svit_deploy.io.files import write_file

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="no such locks: leftovers stay")
WRITER = """
import sys, time
from pathlib import Path
from svit_deploy.io.files import write_file
with write_file(Path(sys.argv[1]), "--json") as part:
    part.write_text("half")
    print("ready", flush=True)
    time.sleep(600)
"""


def write(path: Path, text: str) -> None:
    with write_file(path, "--json") as part:
        assert part.suffix == path.suffix or not path.suffix
        part.write_text(text)


def test_a_file_that_fails_is_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "new folder" / "a.json", "old")
    with (
        pytest.raises(ZeroDivisionError),
        write_file(tmp_path / "new folder" / "a.json", "") as part,
    ):
        part.write_text("new")
        raise ZeroDivisionError
    assert [file.read_text() for file in (tmp_path / "new folder").iterdir()] == ["old"]


@POSIX
@pytest.mark.parametrize("name", ["report.json", "report", "a[1].json"])
def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_stay(
    tmp_path: Path, name: str
) -> None:
    others = [f".{name}.partial-notes.json", f".x{name}.partial-0123456789ab.json"]
    for other in others:
        (tmp_path / other).write_text("mine")
    command = [sys.executable, "-c", WRITER, str(tmp_path / name)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            write(tmp_path / name, "first")
            assert len(list(tmp_path.iterdir())) == 4
        finally:
            process.send_signal(signal.SIGKILL)
    write(tmp_path / name, "second")
    assert (tmp_path / name).read_text() == "second"
    assert {file.name for file in tmp_path.iterdir()} == {*others, name}


@POSIX
def test_a_pipe_that_looks_like_a_leftover_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".a.json.partial-0123456789ab.json")
    write(tmp_path / "a.json", "text")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
