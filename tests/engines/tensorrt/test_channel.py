"""What of TensorRT's log and progress goes to the parent."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from svit_deploy.engines.tensorrt.channel import make_logger, make_monitor
from svit_deploy.errors import CapabilityError
from tests.engines.tensorrt.fake import make_module

CHILD = """
import os, sys
from svit_deploy.engines.tensorrt.channel import Channel
from svit_deploy.errors import CapabilityError
channel = Channel()
print("printed")
os.write(1, b"written\\n")
channel.progress("é \\udcff", 0.12345)
channel.error(CapabilityError("no GPU", "buy one"))
"""


class Recorder:
    def __init__(self) -> None:
        self.is_open, self.errors, self.layers = True, [], ""
        self.sent: list = []

    def send(self, kind, content) -> None:
        self.sent.append((kind, content))

    def progress(self, description, fraction) -> None:
        self.sent.append(fraction)


@pytest.fixture
def trt():
    return make_module("10.16.1.11")


def test_messages_and_nothing_else_on_standard_output():
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"progress": ["é \udcff", 0.123]},
        {"error": [CapabilityError.__name__, "no GPU", "buy one"]},
    ]
    assert sorted(done.stderr.split()) == [b"printed", b"written"]


def test_errors_are_kept_and_chatter_is_not_sent(trt):
    channel = Recorder()
    logger = make_logger(trt, channel)
    levels = trt.ILogger
    for number, severity in enumerate(
        (levels.INTERNAL_ERROR, levels.ERROR, levels.WARNING, levels.INFO, levels.VERBOSE)
    ):
        logger.log(severity, f"message {number}")
    assert channel.errors == ["message 0", "message 1"]
    assert channel.sent == [("log", [logging.DEBUG, f"message {number}"]) for number in range(4)]


def test_the_list_of_layers_is_kept(trt):
    channel = Recorder()
    logger = make_logger(trt, channel)
    for message in ("Layers:\nName: a, LayerType: b", "Layers:\n\nI/O Tensors:", "Layers: 3"):
        logger.log(trt.ILogger.VERBOSE, message)
    assert channel.layers == "Layers:\nName: a, LayerType: b"
    assert channel.sent == []


def test_progress_of_phases_within_phases(trt, monkeypatch):
    monkeypatch.setattr("svit_deploy.engines.tensorrt.channel.INTERVAL_S", -1)
    channel = Recorder()
    monitor = make_monitor(trt, channel, 0.5)
    monitor.phase_start("outer", None, 2)
    monitor.phase_start("inner", "outer", 4)
    assert monitor.step_complete("inner", 0)
    assert monitor.step_complete("inner", 3)
    monitor.phase_finish("inner")
    assert monitor.step_complete("outer", 0)
    monitor.phase_start("inner", "outer", 0)  # some phases have no steps
    assert monitor.step_complete("inner", 0)
    assert monitor.step_complete("outer", 1)
    assert monitor.step_complete("a phase that never began", 7)
    assert channel.sent == [0.5625, 0.75, 0.75, 1.0, 1.0, 1.0]


def test_progress_is_told_now_and_then(trt):
    channel = Recorder()
    monitor = make_monitor(trt, channel, 0.0)
    monitor.phase_start("outer", None, 1000)
    for step in range(1000):
        monitor.step_complete("outer", step)
    assert 1 <= len(channel.sent) < 100


def test_a_closed_channel_cancels(trt):
    channel = Recorder()
    channel.is_open = False
    monitor = make_monitor(trt, channel, 0.0)
    monitor.phase_start("outer", None, 2)
    assert monitor.step_complete("outer", 0) is False
