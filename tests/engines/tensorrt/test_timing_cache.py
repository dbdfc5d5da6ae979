"""The timing cache's file: found, held by one build at a time, and never a reason to fail."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest

from svit_deploy.engines.tensorrt.timing_cache import TimingCache, default_path

fcntl = pytest.importorskip("fcntl", reason="locks as POSIX has them")

BUILD = {"onnx": "0" * 64, "settings": {"tf32": False}, "gpu": None}


@pytest.fixture
def cache(tmp_path) -> TimingCache:
    return TimingCache(tmp_path / "folder" / "a.cache")


def fail_if_waiting() -> None:
    raise AssertionError("nobody else holds it")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SVIT_DEPLOY_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a/timings"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/svit-deploy/timings"),
        ({"HOME": "/c"}, "/c/.cache/svit-deploy/timings"),
    ],
)
def test_where_it_is(monkeypatch, variables, expected):
    for name in ("SVIT_DEPLOY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_path(BUILD).parent == Path(expected)


def test_the_name_is_a_hash_of_the_whole_build(monkeypatch):
    monkeypatch.setenv("SVIT_DEPLOY_CACHE", "/a")
    name = default_path(BUILD).name
    assert len(name) == 64 + len(".cache")
    assert default_path(dict(reversed(BUILD.items()))).name == name
    changes = ({"onnx": "1" * 64}, {"settings": {"tf32": True}}, {"gpu": {"name": "x"}})
    assert len({name, *(default_path(BUILD | change).name for change in changes)}) == 4


def test_what_is_written_is_read(cache):
    with cache.hold(fail_if_waiting):
        assert cache.read() == b""
        cache.write(b"timings")
        assert cache.read() == b"timings"
    names = {file.name for file in cache.path.parent.iterdir()}
    assert names == {"a.cache", "a.cache.lock"}
    assert cache.path.parent.stat().st_mode & 0o077 == 0


def test_one_build_at_a_time(cache):
    """The lock belongs to the open file, so two in one process stand for two processes."""
    order: list[str] = []
    waits = threading.Event()

    def second() -> None:
        with TimingCache(cache.path).hold(waits.set):
            order.append("second")

    with cache.hold(fail_if_waiting):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(30)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_rejected_file_is_put_aside(cache, caplog):
    with cache.hold(fail_if_waiting):
        cache.write(b"bad")
        cache.reject()
        assert cache.read() == b""
    assert cache.path.with_name("a.cache.bad").read_bytes() == b"bad"
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("obstacle", ["a file for the folder", "a folder for the file"])
def test_an_unusable_place_is_one_warning(cache, caplog, obstacle):
    caplog.set_level(logging.WARNING)
    if obstacle == "a file for the folder":
        cache.path.parent.write_text("")
    else:
        cache.path.mkdir(parents=True)
    with cache.hold(fail_if_waiting):
        assert cache.read() == b""
        cache.write(b"timings")
    (message,) = caplog.messages
    assert message.startswith(f"timing cache {cache.path} cannot be ")
    assert message.endswith("; the build goes on without")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_closed_folder_is_one_warning(cache, caplog):
    cache.path.parent.mkdir(mode=0o500)
    with cache.hold(fail_if_waiting):
        cache.write(b"timings")
    (message,) = caplog.messages
    assert "cannot be used (Permission denied)" in message


def test_a_full_disk_is_one_warning(cache, caplog, monkeypatch):
    def full(self, content):
        raise OSError(28, "No space left on device")

    with cache.hold(fail_if_waiting):
        monkeypatch.setattr(Path, "write_bytes", full)
        cache.write(b"timings")
    (message,) = caplog.messages
    assert "cannot be written (No space left on device)" in message
    assert [file.name for file in cache.path.parent.iterdir()] == ["a.cache.lock"]


def test_a_file_system_without_locks_is_one_warning(cache, caplog, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with cache.hold(fail_if_waiting):
        pass
    assert "cannot be used (Operation not supported)" in caplog.text
