"""A few hundred damaged files through the command line; `make fuzz` takes ten thousand."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")

from svit_deploy.cli import main
from tests.fuzz.kinds import KINDS
from tests.fuzz.oracle import End, complaint, snapshot
from tests.fuzz.sound import Sound
from tests.fuzz.worker import Case, Worker

SEED = 1
SLOW = {"torch": 80, "checkpoint": 25, "safetensors": 40, "graph": 15, "manifest": 15, "npz": 12,
        "settings": 50, "picture": 20, "labels": 30, "coco": 3}  # fmt: skip
FAST = {"safetensors": 12, "settings": 12, "torch": 12}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    made = Worker(tmp_path_factory.mktemp("fuzz"))
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(worker: Worker, kind: str) -> None:
    """In a process of its own, which is watched and limited."""
    for number in range(SLOW[kind]):
        case = Case(kind, SEED, number)
        args, end = worker.run(case)
        wrong = complaint(end, KINDS[kind].max_growth)
        assert wrong is None, f"{case.name}, in {worker.folder}: {args}: {wrong}"
        shutil.rmtree(worker.folder / case.name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAST)
def test_damaged_files_in_this_process(
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    sound = Sound(tmp_path / "sound")
    for number in range(FAST[kind]):
        case = Case(kind, SEED + 1, number)
        folder = tmp_path / case.name
        folder.mkdir()
        monkeypatch.chdir(folder)
        args = [str(arg) for arg in KINDS[kind].make(case.random(), folder, sound)]
        if args[0] not in ("inspect", "init"):
            continue
        before = snapshot(folder)
        capfd.readouterr()
        end = End(main(["--no-progress", *args]), *capfd.readouterr())
        assert complaint(end) is None, f"{case.name}: {args}: {complaint(end)}"
        assert end.code == 0 or snapshot(folder) == before


def test_a_case_is_made_of_its_name_alone(tmp_path: Path) -> None:
    case, sound = Case("safetensors", 5, 7), Sound(tmp_path / "sound")
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        KINDS[case.kind].make(case.random(), tmp_path / name, sound)
        contents.append((tmp_path / name / "w.safetensors").read_bytes())
    assert contents[0] == contents[1]


def test_shares_are_of_one_whole() -> None:
    assert sum(kind.share for kind in KINDS.values()) == pytest.approx(1)
