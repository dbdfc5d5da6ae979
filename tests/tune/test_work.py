"""Steps are done once, by whichever run."""

from __future__ import annotations

from pathlib import Path

import pytest

from svit_deploy.errors import ExportError
from svit_deploy.progress import SILENT, Progress
from svit_deploy.tune.work import STEPS, Step, Work, fingerprint

RUN = {"checkpoint": "a"}
PLANNED = [Step("exporting", "a"), Step("verifying", "b"), Step("verifying", "c")]


def work(tmp_path: Path, *, force: bool = False, progress: Progress = SILENT, **run: str) -> Work:
    return Work(tmp_path / "out", RUN | run, PLANNED, force, progress)


def test_a_step_is_done_once(tmp_path):
    for expected in (1, 1):
        with work(tmp_path) as one:
            found = one.once(PLANNED[0], lambda progress, expected=expected: {"run": expected})
            assert found == {"run": 1}
    assert one.found == 1
    assert (tmp_path / "out.tune" / STEPS).is_file()
    one.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_step_among_others_is_done_again_among_others(tmp_path):
    with work(tmp_path) as one:
        for among, expected in (("a, b", 1), ("a, b", 1), ("a", 2), ("a", 2)):
            counted = len(one.journal.path.read_text().splitlines())
            assert one.once(PLANNED[0], lambda progress, n=counted: n, among) == expected
    with work(tmp_path) as one:
        assert one.once(PLANNED[0], lambda progress: 9, "a") == 2


def test_what_fails_is_tried_again(tmp_path):
    def fail(progress):
        raise ExportError("no", "go on")

    with work(tmp_path) as one:
        with pytest.raises(ExportError, match="no"):
            one.once(PLANNED[0], fail)
        assert one.once(PLANNED[0], lambda progress: 5) == 5


def test_another_run_is_refused_or_begun_anew(tmp_path):
    with work(tmp_path) as one:
        one.once(PLANNED[0], lambda progress: 1)
    (one.folder / "dense-fp32").mkdir()
    with pytest.raises(ExportError, match=r"of another run.*--force"):
        work(tmp_path, checkpoint="b").check()
    with work(tmp_path, force=True) as same:
        assert same.once(PLANNED[0], lambda progress: 2) == 1
    with work(tmp_path, force=True, checkpoint="b") as other:
        assert not (other.folder / "dense-fp32").exists()
        assert other.once(PLANNED[0], lambda progress: 2) == 2


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    mine = tmp_path / "out.tune" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    for force in (False, True):
        with pytest.raises(ExportError, match="no folder that tune wrote"):
            work(tmp_path, force=force).__enter__()
    assert mine.read_text() == "mine"


def test_what_is_left_follows_from_what_was_done(tmp_path):
    one = work(tmp_path)
    with one:
        assert one.estimate(PLANNED[0], 0.5) == (0.5 / 3, None)
        one.journal.add("exporting a", {"kind": "exporting", "seconds": 4.0, "result": 0})
        share, left_s = one.estimate(PLANNED[1], 0.0)
        assert left_s == 8 and share == pytest.approx(1 / 3)  # nothing else is known of the kind
        one.journal.add("verifying b", {"kind": "verifying", "seconds": 10.0, "result": 0})
        assert one.estimate(PLANNED[2], 0.5) == (pytest.approx(14 / 19), pytest.approx(5))
        one.drop("c")
        assert one.estimate(PLANNED[2], 0.0)[1] == 0
        assert one.seconds == 14


def test_progress_tells_the_step_and_what_is_left(tmp_path):
    said = []

    class Said(Progress):
        def update(self, description: str, fraction: float, detail: str = "") -> None:
            said.append((description, detail))

    with work(tmp_path, progress=Said()) as one:
        one.journal.add("exporting a", {"kind": "exporting", "seconds": 4.0, "result": 0})
        one.once(PLANNED[1], lambda progress: progress.update("inside", 0.5))
    assert said == [
        ("verifying b", "about 8 s left in all"),
        ("verifying b", "about 6 s left in all"),
    ]


def test_a_fingerprint_changes_with_the_files(tmp_path):
    from PIL import Image

    assert fingerprint(None) is None
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (4, 4)).save(pictures / "a.png")
    first = fingerprint(pictures)
    assert first == fingerprint(pictures) and first != fingerprint(pictures / "a.png")
    Image.new("RGB", (5, 5)).save(pictures / "b.png")
    assert fingerprint(pictures) != first
