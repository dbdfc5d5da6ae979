"""The oracle finds each thing that it is there for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.fuzz.command import Watch
from tests.fuzz.oracle import End, complaint, snapshot

GOOD = "error: a.pth is damaged; download it again.\n"


@pytest.mark.parametrize(
    "end",
    [
        End(0, out="x 1\n"),
        End(0, err="note: assumed\nwarning: odd\n"),
        End(3, err=GOOD),
        End(6, out="FAIL\n", err=GOOD),
        End(0, output=True),
    ],
)
def test_good_ends(end: End) -> None:
    assert complaint(end) is None


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (End(None, err="died of SIGSEGV"), "SIGSEGV"),
        (End(1, err="error: unexpected KeyError: 'a'; report it.\n"), "exit code 1"),
        (End(0, err=GOOD), "1 sentences"),
        (End(3), "0 sentences"),
        (End(3, err=GOOD * 2), "2 sentences"),
        (End(3, err=GOOD + "note: more\n"), "no sentence at the end"),
        (End(3, err="error: bad.\n"), "no fix"),
        (End(3, err="[E:onnxruntime] x\n" + GOOD), "[E:onnxruntime]"),
        (End(3, err="error: " + "x" * 2000 + "; y.\n"), "2011 characters"),
        (End(3, err="error: \x1b[31m; y.\n"), "control character"),
        (End(0, out="a\rb"), "control character"),
        (End(0, out="Traceback (most recent call last)"), "traceback"),
        (End(0, cpu_s=99), "99 s"),
        (End(3, err=GOOD, grown=2**40), "MiB"),
        (End(4, err="error: out of memory; lower --batch.\n"), "machine"),
        (End(0, outside=("/etc/shadow",)), "/etc/shadow"),
        (End(0, changed=("a",)), "left or changed a"),
        (End(3, err=GOOD, output=True), "and an output"),
    ],
)
def test_bad_ends(end: End, words: str) -> None:
    assert words in str(complaint(end))


def test_files_elsewhere_and_programs_are_noticed(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    mine.mkdir()
    theirs.mkdir()
    (theirs / "secret").touch()
    (mine / "link").symlink_to(theirs / "secret")
    with Watch().over(mine) as found:
        (mine / "a").write_text("allowed")
        assert found == []
        (mine / "link").read_text()
        (theirs / "b").write_text("not allowed")
        subprocess.run([sys.executable, "-c", ""], check=True)
    assert found[:2] == [str(theirs / "secret"), f"to write {theirs / 'b'}"]
    assert any("subprocess.Popen" in what for what in found[2:])
    with Watch().over(mine, theirs) as found:
        (mine / "link").read_text()
    assert found == []


def test_a_snapshot_tells_what_changed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    before = snapshot(tmp_path)
    (tmp_path / "a").write_text("other")
    (tmp_path / ".hidden").touch()
    after = snapshot(tmp_path)
    assert before.keys() < after.keys()
    assert before[str(tmp_path / "a")] != after[str(tmp_path / "a")]
