"""The environment in a report, and the progress of a command."""

import io
import json
import platform
import subprocess
import sys

import pytest
from rich.console import Console

from svit_deploy import environment
from svit_deploy.environment import describe_environment, peak_rss_mib
from svit_deploy.progress import SILENT, show_progress

CPUINFO = """processor : 0
model name : Some CPU
physical id : 0
core id : 0

processor : 1
model name : Some CPU
physical id : 0
core id : 0

processor : 2
model name : Some CPU
physical id : 1
core id : 0
"""


def test_environment_is_json_and_says_no_more_than_needed(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    described = describe_environment()
    json.dumps(described, allow_nan=False)
    assert set(described) == {
        *("python", "platform", "cpu", "physical_cores", "usable_cores", "packages", "variables")
    }
    assert described["python"] == platform.python_version()
    assert described["variables"]["OMP_NUM_THREADS"] == "3"
    assert "CUDA_VISIBLE_DEVICES" not in described["variables"]
    assert {"numpy", "onnx"} <= described["packages"].keys()
    assert described["usable_cores"] >= 1


def test_bench_and_engines_import_no_framework_until_used():
    code = (
        "import sys, svit_deploy.bench, svit_deploy.engines, svit_deploy.environment as e;"
        "e.describe_environment();"
        "print({'torch', 'onnx', 'onnxruntime', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not read /proc")
def test_cpu_of_a_machine_with_hyper_threads(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    monkeypatch.setattr(environment, "_CPUINFO", tmp_path / "cpuinfo")
    assert environment.cpu_model() == "Some CPU"
    assert environment.physical_cores() == 2


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not read /proc")
def test_cpu_of_a_machine_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "_CPUINFO", tmp_path / "absent")
    assert environment.cpu_model()
    assert environment.physical_cores() is None


@pytest.mark.skipif(sys.platform == "win32", reason="not measured on Windows")
def test_peak_memory_is_in_mebibytes():
    assert 5 < peak_rss_mib() < 1e6


def progress_of(console: Console, times: list[float], **options) -> str:
    """Updates "load" at each time but the last, then "run [0]"; returns what was printed."""
    ticks = iter(times)
    with show_progress(console, clock=lambda: next(ticks), **options) as progress:
        for i in range(len(times) - 1):
            progress.update("load", i / 10)
        progress.update("run [0]", 1)
    return console.file.getvalue()


def test_progress_without_a_terminal_is_a_few_plain_lines():
    console = Console(file=io.StringIO(), width=80)
    assert progress_of(console, [0, 1, 31, 32]).splitlines() == [
        "  0% load",
        " 20% load",
        "100% run [0]",
    ]


@pytest.mark.parametrize("no_color", [False, True])
def test_progress_on_a_terminal_redraws_at_most_twice_a_second(no_color, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1" if no_color else "")
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    text = progress_of(console, [0, 0.1, 0.2, 0.9, 1])
    assert "run [0]" in text
    assert " 30%" in text
    assert " 10%" not in text
    assert ("\x1b[3" in text) is not no_color


def test_progress_can_be_silent():
    console = Console(file=io.StringIO(), force_terminal=True)
    assert progress_of(console, [0, 1], enabled=False) == ""
    SILENT.update("anything", 0.5)
