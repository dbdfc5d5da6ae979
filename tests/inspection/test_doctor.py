"""What doctor finds on machines that lack something, and what it tells the user to type."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from rich.console import Console

from svit_deploy.errors import CapabilityError
from svit_deploy.inspection import doctor, openvino
from svit_deploy.inspection.doctor import Diagnosis, Finding, examine
from svit_deploy.inspection.openvino import ON_OPENVINO
from tests.engines.tensorrt.fake.cuda import Device, make_cuda

GOOD = {
    "numpy": "2.4.6", "onnx": "1.23.2", "onnxruntime": "1.31.1", "pillow": "13.0.0",
    "pyyaml": "6.0.3", "safetensors": "0.8.0", "torch": "2.13.0+cpu", "matplotlib": "3.11.2",
    "torchvision": "0.28.0+cpu", "pycocotools": "2.0.11", "pyarrow": "20.0.0",
    "huggingface-hub": "1.0.0", "timm": "1.0.20", "openvino": "2026.4.1",
    "polygraphy": "0.53.6",
    "kserve": "0.21.0", "ray": "2.60.0", "tritonclient": "2.73.0", "av": "18.1.0",
}  # fmt: skip
DEVICES = "svit_deploy.engines.openvino.library.describe_devices"
Machine = Callable[..., Diagnosis]
CPU = "CPUExecutionProvider"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Examines a machine with the versions of GOOD, but for those given; None: not installed."""

    def with_versions(**changes: str | None) -> Diagnosis:
        versions = GOOD | {name.replace("_", "-"): version for name, version in changes.items()}

        def version(name: str) -> str:
            if versions.get(name) is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return str(versions[name])

        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(doctor, "examine_nvidia", lambda: iter(()))
        monkeypatch.setattr(DEVICES, lambda: "CPU in f32, bf16")
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
        monkeypatch.setattr("svit_deploy.engines.onnxruntime.installed_plugins", list)
        return examine()

    return with_versions


def find(diagnosis: Diagnosis, name: str) -> Finding:
    (found,) = (finding for finding in diagnosis.findings if finding.name == name)
    return found


def broken_commands(diagnosis: Diagnosis) -> set[str]:
    return {command for command, reasons in diagnosis.commands.items() if reasons}


def shown(diagnosis: Diagnosis) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    diagnosis.render(Console(file=stream, width=80))
    stream.flush()
    text = stream.buffer.getvalue().decode("ascii")
    assert all(len(line) <= 80 for line in text.splitlines())
    return text


def test_complete_machine(machine: Machine) -> None:
    diagnosis = machine()
    assert {finding.state for finding in diagnosis.findings} == {"ok"}
    assert not any(finding.fix for finding in diagnosis.findings)
    assert broken_commands(diagnosis) == set()
    assert list(diagnosis.commands) == [
        "export", "export hf://", "export timm:", "verify", "verify --against",
        "export --task detect", "verify --against, detect", "debug", "evaluate",
        "verify --annotations", "evaluate --annotations", "predict --format coco", "bench",
        "bench --sweep-tokens", "tune", "predict", "predict --format parquet", "visualize",
        "serve", "--ray: verify, evaluate, predict, serve", "--images: files of videos",
        "package", "package --format triton", "inspect", "init", "quickstart",
        "--engine openvino", "export --target tensorrt", "export --target tensorrt-rtx",
        "export --target tensorrt --plugins", "engines: verify, bench", "plugins build",
    ]  # fmt: skip
    assert find(diagnosis, "onnxruntime").detail.endswith("; providers that start: cpu")
    text = shown(diagnosis)
    assert re.search(r"quickstart +yes", text)
    assert "pip" not in text


@pytest.mark.parametrize(
    ("changes", "state", "commands"),
    [
        ({"torch": None}, "missing", set(doctor.WITH_CHECKPOINT)),
        ({"torch": "2.5.1"}, "too old", set(doctor.WITH_CHECKPOINT)),
        ({"matplotlib": None}, "missing", {"bench --sweep-tokens"}),
        ({"pycocotools": None}, "missing", set(doctor.ANNOTATED)),
        ({"torchvision": None}, "missing", set(doctor.DETECTORS)),
        ({"polygraphy": "0.49.26"}, "too old", {"debug"}),
        ({"pyarrow": None}, "missing", {"predict --format parquet"}),
        ({"kserve": None}, "missing", {"serve"}),
        ({"ray": None}, "missing", set(doctor.ON_RAY)),
        ({"tritonclient": None}, "missing", {"package --format triton"}),
        ({"timm": "0.9.16"}, "too old", {"export timm:"}),
        ({"av": None}, "missing", set(doctor.OF_VIDEOS)),
        ({"huggingface_hub": None}, "missing", {"export hf://", "export timm:"}),
        ({"onnx": "1.20.9"}, "too old", set(doctor.EVERY)),
        ({"onnxruntime": "1.9.0"}, "too old", set(doctor.RUNNING)),
        (
            {"onnxruntime_gpu": "1.31.1"},
            "broken",
            set(doctor.RUNNING),
        ),
    ],
)
def test_what_is_missing(
    machine: Machine, changes: dict[str, str | None], state: str, commands: set[str]
) -> None:
    diagnosis = machine(**changes)
    name = next(iter(changes)).removesuffix("_gpu").replace("_", "-")
    found = find(diagnosis, name)
    assert found.state == state
    assert broken_commands(diagnosis) == commands
    assert all(diagnosis.commands[command] == (f"{name} is {state}",) for command in commands)
    assert re.search(rf'pip install --upgrade "{name}(-gpu)?>=[\d.]+"$', found.fix)
    text = shown(diagnosis)
    assert f"no: {name} is {state}" in text
    assert "pip install" in text


def test_no_runtime(machine: Machine) -> None:
    diagnosis = machine(onnxruntime=None)
    found = find(diagnosis, "onnxruntime")
    assert found.state == "missing"
    assert broken_commands(diagnosis) == set(doctor.RUNNING)
    assert found.fix == "pip install 'svit-deploy[cpu]', or 'svit-deploy[gpu]' for NVIDIA GPUs"


def test_old_torch_says_why(machine: Machine) -> None:
    assert "CVE-2025-32434" in find(machine(torch="2.5.1+cu121"), "torch").detail
    found = find(machine(torch="2.6.0a0+git1"), "torch")
    assert found.state == "ok"
    assert "2.10 is safer" in found.detail
    assert find(machine(torch="2.10.0"), "torch").detail == "2.10.0"


def test_two_runtimes_overwrite_each_other(machine: Machine) -> None:
    fix = find(machine(onnxruntime_gpu="1.31.1"), "onnxruntime").fix
    assert fix.startswith("pip uninstall onnxruntime onnxruntime-gpu, then pip install")


def test_runtime_that_cannot_be_loaded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[str]:
        raise OSError("libfoo.so:\n  undefined symbol")

    monkeypatch.setattr("svit_deploy.engines.onnxruntime.available_providers", fail)
    found = find(machine(), "onnxruntime")
    assert found.state == "broken"
    assert "libfoo.so: undefined symbol" in found.detail


def test_only_providers_that_start_are_usable(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU package lists CUDA everywhere; here its session falls back, as without a GPU."""
    start = onnxruntime.InferenceSession

    def fall_back(*args: Any, providers: list[str], **options: Any) -> Any:
        if providers != [CPU]:
            os.write(2, b"2026 [E:onnxruntime:Default, x.cc:1 Get()] no libcublas.so here\n")
        return start(*args, providers=[CPU], **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", make_cuda(Device()))
    diagnosis = machine()
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU]
    )
    diagnosis = examine()
    assert find(diagnosis, "onnxruntime").detail.endswith("; providers that start: cpu")
    found = find(diagnosis, "provider cuda")
    assert (found.state, found.needed_for) == ("unusable", ())
    assert "could not start" in found.detail and "no libcublas.so here" in found.detail
    assert "\n" not in found.detail
    assert found.fix.startswith("pip install 'onnxruntime-gpu[cuda,cudnn]'")
    assert broken_commands(diagnosis) == set()


def test_no_provider_starts(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(provider: str) -> None:
        raise CapabilityError(f"{provider} could not start", "run: pip install it")

    monkeypatch.setattr("svit_deploy.engines.onnxruntime.require_provider", refuse)
    diagnosis = machine()
    assert find(diagnosis, "onnxruntime").state == "broken"
    assert broken_commands(diagnosis) == set(doctor.RUNNING)


def test_openvino(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(machine(), "openvino").detail == "2026.4.1; CPU in f32, bf16"
    old = machine(openvino="2024.6.0")
    assert find(old, "openvino").detail == "2024.6.0, needs 2025.4"
    assert broken_commands(old) == {ON_OPENVINO}
    assert broken_commands(machine(openvino=None)) == {ON_OPENVINO}
    assert "pip install" in shown(machine(openvino=None))

    def fail() -> str:
        raise CapabilityError("OpenVINO cannot be imported: libfoo.so", "install it")

    with monkeypatch.context() as broken:
        broken.setattr(f"{openvino.__name__}.installed_version", lambda name: "2026.4.1")
        broken.setattr(DEVICES, fail)
        name, state, detail, needed_for, fix = openvino.examine_openvino()
    assert (name, state, needed_for) == ("openvino", "broken", (ON_OPENVINO,))
    assert detail == "2026.4.1: OpenVINO cannot be imported: libfoo.so"
    assert fix.startswith("pip install")


def test_record(machine: Machine) -> None:
    record = json.loads(json.dumps(machine(torch=None).to_dict(), allow_nan=False))
    assert record["schema_version"] == 1
    assert record["commands"]["verify"] == {"works": True, "reasons": []}
    assert record["commands"]["export"] == {"works": False, "reasons": ["torch is missing"]}
    torch = next(finding for finding in record["findings"] if finding["name"] == "torch")
    assert torch["needed_for"] == list(doctor.WITH_CHECKPOINT)


def test_machine(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cpu_model", lambda: "Prozessor™")
    monkeypatch.setattr(doctor, "_cpu_features", lambda: ["AVX2"])
    monkeypatch.setattr(doctor, "_cpu_quota", lambda: 1.5)
    diagnosis = machine()
    assert find(diagnosis, "cpu").detail == "Prozessor™; AVX2"
    assert "limited to 1.5" in find(diagnosis, "threads").detail
    assert "Prozessor?" in shown(diagnosis)


def test_minimum_versions_are_those_of_the_package() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for requirement in doctor.REQUIREMENTS:
        wanted = rf'"{requirement.name}(\[\w+\])?>={re.escape(requirement.minimum)}"'
        assert re.search(wanted, text)
    for runtime in ("onnxruntime", "onnxruntime-gpu"):
        assert f'"{runtime}>={doctor.RUNTIME_MINIMUM}' in text
    assert f'"openvino>={openvino.OLDEST}"' in text


def test_nothing_heavy_is_imported() -> None:
    script = (
        "import sys; from svit_deploy.inspection.doctor import examine; examine()\n"
        "print([name for name in ('torch', 'onnx', 'matplotlib', 'PIL') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert done.stdout == "[]\n", done.stderr
