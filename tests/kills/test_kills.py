"""A dozen kills; `make kills` makes two hundred."""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")

from tests.kills.commands import WRITINGS
from tests.kills.killing import litter, state
from tests.kills.trial import Ground

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such signals and locks")
KILLS = {"export --force": 4, "run": 3, "predict, rows": 4, "inspect --json": 2}
SIGNALS = {"export --force": signal.SIGTERM, "predict, rows": signal.SIGINT}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("kills"))


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
def test_killed(ground: Ground, name: str) -> None:
    for number in range(KILLS[name]):
        trial = ground.trial(name, signal.SIGKILL, random.Random(f"{name}/{number}"))
        assert trial.wrong is None, trial.wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
def test_asked_to_end(ground: Ground, name: str) -> None:
    trial = ground.trial(name, SIGNALS[name], random.Random(name))
    assert trial.wrong is None, trial.wrong


def test_what_is_half_written_is_found(tmp_path: Path) -> None:
    """The checks of the trials can fail."""
    bundle, report = WRITINGS["export"], WRITINGS["inspect --json"]
    assert state(tmp_path, "out", None, bundle) == "nothing"
    assert "lost" in state(tmp_path, "out", {"a": b""}, bundle)
    (tmp_path / "out").mkdir()
    assert "half written" in state(tmp_path, "out", None, bundle)
    (tmp_path / "out.json").write_text('{"schema_version": 1')
    assert "half written" in state(tmp_path, "out.json", None, report)
    assert state(tmp_path, "out.json", {".": b'{"schema_version": 1'}, report) == "old"
    (tmp_path / ".out.json.partial-0123456789ab.json").touch()
    assert litter(tmp_path, "out.json", report) == [".out.json.partial-0123456789ab.json", "out"]
