"""Building in a process of its own: what comes back, and every way it can end."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from svit_deploy.engines.tensorrt import build as building
from svit_deploy.engines.tensorrt.build import build_engine
from svit_deploy.engines.tensorrt.sidecar import read_sidecar
from svit_deploy.errors import CapabilityError, ExportError, InputError
from svit_deploy.progress import Progress
from tests.engines.tensorrt.fake.runtime import Plan

fcntl = pytest.importorskip("fcntl", reason="locks and signals as POSIX has them")


INTERRUPTED = """
import pickle, signal, sys
from svit_deploy.engines.tensorrt.build import build_engine
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
with open(sys.argv[1], "rb") as file:
    build_engine(*pickle.load(file))
"""


class Told(Progress):
    def __init__(self) -> None:
        self.descriptions: list[str] = []
        self.fractions: list[float] = []

    def update(self, description: str, fraction: float) -> None:
        self.descriptions.append(description)
        self.fractions.append(fraction)


@pytest.fixture
def out(tmp_path) -> Path:
    folder = tmp_path / "out é"
    folder.mkdir()
    return folder


def test_an_engine_its_sidecar_and_nothing_else(
    graph, settings, fake_process, out, capfd, tmp_path
):
    told = Told()
    fake_process.chdir(tmp_path)  # names that lead nowhere from the process's folder
    library = Path("libsvit_trt.so")
    library.write_text("fake plugins: SvitGather")
    model = graph(name="a graph.onnx").relative_to(tmp_path)
    sidecar = build_engine(model, out.relative_to(tmp_path), settings(plugin_library=library), told)
    engine = out / "model.fp16-trt10.16-sm90.engine"
    assert sorted(file.name for file in out.iterdir()) == [
        "model.fp16-trt10.16-sm90.engine", "model.fp16-trt10.16-sm90.json"
    ]  # fmt: skip
    assert read_sidecar(engine) == sidecar
    assert Plan.from_bytes(engine.read_bytes()).onnx == model.read_bytes()
    assert told.fractions == sorted(told.fractions)
    assert told.descriptions[0] == "starting the builder"
    assert capfd.readouterr() == ("", "")


def test_an_older_engine_of_that_name_is_replaced(graph, settings, fake_process, out):
    engine = out / "model.fp16-trt10.16-sm90.engine"
    for file in (engine, engine.with_suffix(".json")):
        file.write_bytes(b"old")
    build_engine(graph(), out, settings())
    read_sidecar(engine)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (("Kill", ""), "the build was killed, probably for want of memory; lower --workspace or "
         "the largest --batch"),
        (("Segfault", "Assertion: last words"), r"TensorRT crashed while building \(SIGSEGV\); its "
         "last words: .*Assertion: last words.*; try --tokens budget"),
        (("Abort", "terminate called"), r"crashed while building \(SIGABRT\).*terminate called"),
        (("Fail", "Error Code 1: Myelin"), "cannot build the engine: Error Code 1: Myelin; run "
         "again with -v"),
    ],
)  # fmt: skip
def test_a_build_that_ends_badly_is_one_sentence_and_leaves_nothing(
    graph, settings, fake_process, out, capfd, fault, message
):
    with pytest.raises(ExportError, match=message) as caught:
        build_engine(graph(fault=fault), out, settings())
    assert "\n" not in str(caught.value)
    assert list(out.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_what_tensorrt_prints_is_no_message_of_ours(graph, settings, fake_process, out, capfd):
    chatter = '{"error": ["ExportError", "not ours", ""]}'
    build_engine(graph(fault=("Chatter", chatter)), out, settings())
    assert capfd.readouterr() == ("", "")


def test_what_the_machine_lacks_comes_through(graph, settings, fake_process, out):
    fake_process.setenv("FAKE_DEVICE", '{"count": 0}')
    fake_process.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(CapabilityError, match="no NVIDIA GPU was found; build on the machine that"):
        build_engine(graph(), out, settings())


def test_a_bug_is_no_user_error(graph, settings, fake_process, out):
    with pytest.raises(RuntimeError, match=r"(?s)the build process failed:.*ValueError: a bug"):
        build_engine(graph(fault=("Raise", "a bug")), out, settings())
    assert list(out.iterdir()) == []


def test_killed_in_the_middle_of_a_line(graph, settings, out, tmp_path, monkeypatch):
    stub = "import os; print('{\"progress\": [', end='', flush=True); os.kill(os.getpid(), 9)"
    (tmp_path / "stub_worker.py").write_text(stub)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(building, "WORKER", "stub_worker")
    with pytest.raises(ExportError, match="the build was killed"):
        build_engine(graph(), out, settings())


def test_a_process_that_cannot_start(graph, settings, out, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/absent/python")
    with pytest.raises(ExportError, match=r"build process cannot be started \(No such file"):
        build_engine(graph(), out, settings())
    assert list(out.iterdir()) == []


def test_tensorrts_log_goes_to_ours(graph, settings, fake_process, out, caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ExportError):
        build_engine(graph(fault=("Fail", "Error Code 9")), out, settings())
    assert "Error Code 9" in caplog.messages


def test_a_warning_of_ours_comes_through(graph, settings, fake_process, out, tmp_path, caplog):
    cache = tmp_path / "my.cache"
    cache.write_bytes(b"garbage")
    build_engine(graph(), out, settings(timing_cache=cache))
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "renamed to my.cache.bad and the build goes on without" in record.getMessage()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"<html>", "is a web page"),
        (b"\xff" * 100, "is not an ONNX model or is cut short"),
    ],
)
def test_a_graph_that_is_none(settings, out, tmp_path, content, message):
    model = tmp_path / "model.onnx"
    if content is not None:
        model.write_bytes(content)
    with pytest.raises(InputError, match=message):
        build_engine(model, out, settings())


def test_a_graph_above_2_gib_is_refused_before_anything_is_built(settings, out, tmp_path):
    model = tmp_path / "model.onnx"
    with model.open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(InputError, match="more than the 2 GiB a protobuf may have"):
        build_engine(model, out, settings())


def test_a_folder_that_cannot_be_written(graph, settings, tmp_path):
    with pytest.raises(ExportError, match=r"cannot write to .*absent \(No such file or directory"):
        build_engine(graph(), tmp_path / "absent", settings())


def test_without_the_package(graph, settings, out, monkeypatch):
    blocked = out.parent / "blocked"
    blocked.mkdir()
    (blocked / "tensorrt.py").write_text("raise ImportError('No module named tensorrt')")
    monkeypatch.syspath_prepend(str(blocked))
    with pytest.raises(CapabilityError, match="tensorrt cannot be imported: No module named"):
        build_engine(graph(), out, settings())


def test_nothing_is_imported_from_the_users_folder(graph, settings, fake_process, out, tmp_path):
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "json.py").write_text("raise SystemExit('trapped')")
    fake_process.chdir(trap)
    build_engine(graph(), out, settings())


def test_an_interrupt_ends_the_process(graph, settings, fake_process, out, tmp_path):
    """In a program of its own: what else runs in that of the tests has no part in it."""
    started, given = tmp_path / "started", tmp_path / "given"
    given.write_bytes(pickle.dumps((graph(fault=("Slow", str(started))), out, settings())))
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(given)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(lambda: started.exists() and started.read_text())
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in printed
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    assert list(out.iterdir()) == []


def test_a_second_build_of_the_same_engine_waits(graph, settings, fake_process, out, tmp_path):
    cache = tmp_path / "my.cache"
    told = Told()
    with (tmp_path / "my.cache.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = "waiting for another build of the same engine"

        def let_go() -> None:
            wait_for(lambda: waiting in told.descriptions)
            fcntl.flock(lock, fcntl.LOCK_UN)

        thread = threading.Thread(target=let_go)
        thread.start()
        build_engine(graph(), out, settings(timing_cache=cache), told)
        thread.join()
    assert told.descriptions[1] == waiting
    assert cache.exists()


def test_a_process_whose_parent_died_ends_the_build(graph, settings, fake_process, out, tmp_path):
    """It has the other end of its channel closed then."""
    process = subprocess.Popen(
        [sys.executable, "-m", building.WORKER, graph(), out],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=building._environment(settings(), tmp_path),
    )
    process.stdout.close()
    process.stdin.write(settings().to_json().encode())
    process.stdin.close()
    process.wait(60)
    process.stderr.close()
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [(0, None, None), (0, "2,3", "2,3"), (1, None, "1"), (1, "2,3", "3"), (4, "2,3", "4")],
)
def test_the_gpu_to_build_on_is_the_only_one_seen(
    settings, monkeypatch, tmp_path, device, visible, expected
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    environment = building._environment(settings(device=device), tmp_path)
    assert environment.get("CUDA_VISIBLE_DEVICES") == expected


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)
