"""Work on Ray: the results of one process to the last bit, whoever does it and however often."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from svit_deploy.bundle import Bundle
from svit_deploy.errors import CapabilityError, InputError
from svit_deploy.images import ImageSet
from svit_deploy.inference.job import Opened
from svit_deploy.inference.settings import InferenceSettings
from svit_deploy.inference.stream import Run, Seen, Stream
from svit_deploy.machine.cluster import LOCAL, cluster, room
from tests.conftest import DIGITS, skip_without
from tests.result import Result

skip_without("ray")
pytestmark = pytest.mark.slow

HELDOUT = DIGITS / "heldout.npz"
CPU = {"num_cpus": 1}
Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def joined() -> Iterator[str]:
    """The address of a cluster of this machine, which this process has joined."""
    import ray

    with cluster(LOCAL):
        yield ray.get_runtime_context().gcs_address


def job(of: Callable[[int], int], shard: int = 4) -> Any:
    """A job on numbers; its class is made here, so that it is sent and not looked for there."""

    class Numbers:
        @contextmanager
        def open(self) -> Iterator[Opened[int, int]]:
            def work(numbers: Iterable[int]) -> Iterator[int]:
                return (of(number) for number in numbers)

            yield Opened("numbers", 1, work, shard)

    return Numbers()


def results(asked: Any, numbers: Iterable[int], actors: int = 2) -> Iterator[int]:
    from svit_deploy.inference.actors import open_on_ray

    with open_on_ray(asked, actors, CPU) as there:
        assert there.told == "numbers"
        yield from there.work(numbers)


def test_results_come_in_order_and_few_items_are_taken_in(joined: str) -> None:
    drawn: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            yield number

    def slowly(number: int) -> int:
        import time

        time.sleep(0.2 if number == 0 else 0)
        return number * number

    found = results(job(slowly, shard=6), numbers())
    assert next(found) == 0
    assert len(drawn) <= 2 * 4 * 6 + 1  # actors, shards ahead, items of a shard
    assert list(found) == [number * number for number in range(1, 100)]


def test_a_failure_comes_behind_the_results_before_it(joined: str) -> None:
    def fails(number: int) -> int:
        if number == 13:
            raise InputError("13 cannot be read", "leave it out")
        return number

    seen = []
    with pytest.raises(InputError, match="13 cannot be read; leave it out"):
        for number in results(job(fails), range(50)):
            seen.append(number)
    assert seen == list(range(13))


def test_a_bug_keeps_its_kind(joined: str) -> None:
    with pytest.raises(ZeroDivisionError):
        list(results(job(lambda number: 1 // number), range(3)))


def test_what_kills_every_worker_is_given_up(joined: str) -> None:
    def dies(number: int) -> int:
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(CapabilityError, match="died 4 times at the same images"):
        list(results(job(dies), range(8), actors=1))


def test_the_shard_of_a_killed_worker_is_done_again(
    joined: str, digits_bundle: Bundle, heldout: ImageSet, tmp_path: Path
) -> None:
    """kill -9 in the middle of a shard, of a worker that has others waiting."""
    from svit_deploy.inference.actors import open_on_ray

    killed = tmp_path / "killed"

    def look(seen: Seen) -> tuple[int, bytes, bytes]:
        if seen.number in (70, 200):
            marker = killed.with_suffix(f".{seen.number}")
            if not marker.exists():
                marker.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
        assert seen.keep_mask is not None
        return seen.number, seen.outputs["logits"].tobytes(), seen.keep_mask.tobytes()

    run = Run(digits_bundle, InferenceSettings(threads=1), look)
    source = heldout.stream()
    with open_on_ray(run, 2, CPU) as there:
        stream = Stream(there, digits_bundle, source)
        found = list(stream)
    assert {path.name for path in tmp_path.iterdir()} == {"killed.70", "killed.200"}
    assert stream.done == len(heldout) and stream.engine_seconds > 0
    with run.open() as here:
        assert found == list(Stream(here, digits_bundle, source))


def test_a_changed_bundle_is_refused_there(joined: str, digits_bundle: Bundle) -> None:
    from dataclasses import replace

    from svit_deploy.inference.actors import open_on_ray

    other = replace(digits_bundle, manifest=digits_bundle.manifest | {"precision": "fp16"})
    run = Run(other, InferenceSettings(threads=1), lambda seen: seen.number)
    with (
        pytest.raises(InputError, match="not the same bundle on every machine"),
        open_on_ray(run, 1, CPU),
    ):
        pass


def test_room(joined: str) -> None:
    there = room({"num_cpus": 1})
    assert there >= 1 and room({"num_cpus": there}) == 1 and room({"num_cpus": there + 1}) == 0


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_where_there_is_no_cluster(address: str) -> None:
    with pytest.raises(CapabilityError, match=f"does not run at {address} .*refused"):
        cluster(address).__enter__()


def test_a_command_joins_a_cluster(joined: str, digits_bundle: Bundle, tmp_path: Path) -> None:
    """Its standard output holds what it says, and nothing of Ray's."""
    written = {}
    for place in ([], ["--ray", joined, "--actors", "2"]):
        output = tmp_path / f"{len(place)}.csv"
        command = [sys.executable, "-m", "svit_deploy", "predict", digits_bundle.path, HELDOUT]
        ended = subprocess.run(
            list(map(str, [*command, "-o", output, "--threads", "1", *place])),
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout == f"wrote {output}\n"
        assert "ray" not in ended.stderr.lower()
        written[len(place)] = output.read_bytes()
    assert written[0] == written[4]


@pytest.fixture
def parted(joined: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of this process find the cluster that it has joined."""

    @contextmanager
    def there(address: str) -> Iterator[None]:
        assert address == "auto"
        yield

    monkeypatch.setattr("svit_deploy.inference.places.cluster", there)


ON_RAY = ("--ray", "auto", "--actors", "2")


def test_pictures_that_cannot_be_read_and_a_run_that_goes_on(
    parted: None, cli: Cli, digits_bundle: Bundle, digit_pictures: Path, tmp_path: Path
) -> None:
    """Skipped pictures take nothing from which images run together, here or there."""
    names = sorted(digit_pictures.rglob("*.png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(map(str, [*names[:9], broken, *names[9:]])))
    asked = ("predict", digits_bundle.path, listed, "--threads", "1", "--batch", "8")
    here, there, later = (tmp_path / f"{name}.csv" for name in ("here", "there", "later"))
    assert cli(*asked, "-o", here, "--on-error", "skip").code == 0
    ended = cli(*asked, "-o", there, "--on-error", "skip", *ON_RAY)
    assert ended.code == 0 and "1 of 41 pictures were skipped" in ended.err
    assert here.read_bytes() == there.read_bytes()
    ended = cli(*asked, "-o", later, *ON_RAY)
    assert ended.code == 3 and "cannot be read" in ended.err
    assert later.with_name("later.csv.partial").exists() and not later.exists()
    ended = cli(*asked, "-o", later, "--on-error", "skip", *ON_RAY)
    assert ended.code == 0 and "going on from" in ended.err
    assert "1 of 32 pictures were skipped" in ended.err
    rows = [[line.split(",")[0] for line in path.open()] for path in (here, later)]
    assert len(rows[0]) == 41 and rows[0] == rows[1]


TIMES = ("seconds", "images_per_s", "engine_images_per_s")


def test_reports_are_the_same(
    parted: None, cli: Cli, digits_bundle: Bundle, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    checkpoint = ("--against", DIGITS / "svit_digits.pth", "--arch", DIGITS / "arch.yaml")
    for command in (
        ("evaluate", digits_bundle.path, "--images", HELDOUT),
        ("verify", digits_bundle.path, "--images", HELDOUT, *checkpoint),
    ):
        reports = []
        for place in ((), ON_RAY):
            ended = cli(*command, "--threads", "1", "--json", tmp_path / "report.json", *place)
            assert ended.code == 0, ended.err
            report = json.loads((tmp_path / "report.json").read_text())
            del report["created_utc"], report["command"]
            for name in TIMES:
                report["results"].pop(name, None)
            reports.append(json.dumps(report))
        assert reports[0] == reports[1]
