"""The environment in a report."""

import json
import platform
import subprocess
import sys

import pytest

from svit_deploy.machine import environment
from svit_deploy.machine.environment import describe_environment, peak_rss_mib

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
        "import sys, svit_deploy.bench.run, svit_deploy.bench.plots, svit_deploy.bench.printing;"
        "import svit_deploy.engines.onnxruntime, svit_deploy.engines.batches;"
        "from svit_deploy.machine.environment import describe_environment as f; f();"
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
